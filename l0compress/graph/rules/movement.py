"""Pure data movement: the operator is run on the labels themselves, so no operator here needs a rule of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from l0compress.graph.rules.registry import Result, Step, rule
from l0compress.graph.values import Value

_RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")


@rule(
    *_RESHAPES,
    "permute",
    "transpose",
    "t",
    "numpy_T",
    "mT",
    "swapaxes",
    "swapdims",
    "movedim",
    "select",
    "slice",
    "narrow",
    "chunk",
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_chunk",
    "tensor_split",
    "unbind",
    "roll",
    "flip",
    "repeat",
    "tile",
    "repeat_interleave",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "unfold",
    "diagonal",
)
def movement(step: Step) -> Result:
    value = step.args[0]
    move = _mover(step)
    if len(step.shapes) == 1 and not step.returns_list:
        return step.space.disjoint(value.mapped(move, step.shape), step.node)
    moved = [move(plane) for plane in value.planes]
    return tuple(value_of_part(shape, [parts[i] for parts in moved]) for i, shape in enumerate(step.shapes))


def value_of_part(shape: tuple[int, ...], planes: list[Tensor]) -> Value:
    return Value(shape, tuple(planes)).mapped(lambda plane: plane, shape)


def _mover(step: Step) -> Callable[[Tensor], Any]:
    if step.name in _RESHAPES:
        return lambda plane: plane.reshape(step.shape)
    target: Any = step.node.target
    rest = step.args[1:]
    if any(isinstance(argument, Value) for argument in rest):  # repeat_interleave by a tensor of counts
        return lambda plane: plane.new_zeros(()).expand(step.shape)
    kwargs = {key: argument for key, argument in step.kwargs.items() if key not in ("memory_format", "output_size")}
    return lambda plane: target(plane, *rest, **kwargs)


@rule("expand", "expand_as", "broadcast_to")
def expand(step: Step) -> Result:
    """A stretched dimension of literal size holds equal elements, so it may follow the channels that it meets."""
    value = step.args[0]
    moved = value.mapped(lambda plane: plane.expand(step.shape), step.shape)
    if step.name != "expand":
        return moved
    offset = len(step.shape) - len(value.shape)
    sizes: Any = step.node.args[1]
    planes = list(moved.planes)
    for dim, size in enumerate(sizes):
        if isinstance(size, int) and size > 1 and (dim < offset or value.shape[dim - offset] == 1):
            plane = step.space.fresh_plane(frozenset({dim}), step.shape)
            step.space.mark_soft_(plane)
            planes.append(plane)
    return Value(step.shape, tuple(planes))
