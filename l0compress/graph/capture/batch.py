"""Where the batch lies: one dimension of each input, known to the graph, found by hints, symbols and sizes.

Inputs are counted leaf by leaf of ``(args, kwargs)``; what is no tensor, and what does not run over the batch (a mask
that all samples share, a scalar), has None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from l0compress.loading.exported import BATCH_DIMS

BatchDims = tuple[int | None, ...]


def leaves_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The inputs of a call, one after the other, whatever containers they come in."""
    return pytree.tree_leaves((args, dict(kwargs)))


def batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], dims: BatchDims = ()) -> int:
    """The batch size of a call: that of the first input with a batch dimension in ``dims``, and where ``dims`` is
    empty the leading size of the first tensor that has a dimension; 1 where there is none.

    Examples:
        >>> batch_of((torch.zeros(()),), {"x": torch.zeros(4, 3)})
        4
        >>> batch_of((torch.zeros(7, 4, 3), torch.zeros(2, 4, 5)), {}, (1, 1))
        4
    """
    leaves = leaves_of(args, kwargs)
    places = dims or [0 if isinstance(leaf, Tensor) and leaf.dim() else None for leaf in leaves]
    return next((int(leaf.shape[dim]) for leaf, dim in zip(leaves, places, strict=True) if dim is not None), 1)


def leading(leaves: Iterable[Any], size: int) -> BatchDims:
    """0 for every input whose leading size is ``size``."""
    return tuple(0 if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else None for leaf in leaves)


def doubled(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], dims: BatchDims
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch of one as a batch of two: a size of 1 cannot be captured as dynamic."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    wide = [leaf if dim is None else torch.cat([leaf, leaf], dim) for leaf, dim in zip(leaves, dims, strict=True)]
    return pytree.tree_unflatten(wide, spec)


def moved(leaves: Sequence[Any], sources: Sequence[int | None], targets: Sequence[int | None]) -> list[Any]:
    """Every input with its batch brought from one dimension to another; what has none in either stays as it is."""
    return [
        leaf if source is None or target is None or source == target else leaf.movedim(source, target)
        for leaf, source, target in zip(leaves, sources, targets, strict=True)
    ]


def symbols_of(placeholders: Iterable[fx.Node]) -> list[dict[int, str]]:
    """For each input, its dimensions whose size is free or tied to a free one, and that size as an expression."""
    values = [node.meta.get("val") for node in placeholders]
    return [
        {dim: str(size) for dim, size in enumerate(value.shape) if not is_concrete_int(size)}
        if isinstance(value, Tensor)
        else {}
        for value in values
    ]


def bounds_of(size: int | torch.SymInt) -> tuple[float, float]:
    """The smallest and the largest value that a captured model takes for a size."""
    if not isinstance(size, torch.SymInt):
        return size, size
    found = size.node.shape_env.bound_sympy(size.node.expr)
    return float(found.lower), float(found.upper)


def batch_dims_of(leaves: Sequence[Any], symbols: Sequence[Mapping[int, str]], known: BatchDims = ()) -> BatchDims:
    """The batch dimension of each input of a captured model.

    What is ``known`` holds. The symbol of the batch is that of the first input where it is known, else the one that
    leads an input first, else the first there is. Elsewhere the batch is where that symbol is; or, where the model
    never compares an input's batch with another's, where a free size is that of the example's batch.

    Examples:
        >>> x, h = torch.zeros(2, 7, 3), torch.zeros(4, 2, 5)
        >>> batch_dims_of([x, h], [{0: "n", 1: "length"}, {1: "n"}])
        (0, 1)
    """
    known = known or (None,) * len(leaves)
    symbol, size = _batch(leaves, symbols, known)
    taken = {s for free in symbols if symbol in free.values() for s in free.values() if s != symbol}

    def place(leaf: Any, free: Mapping[int, str], given: int | None) -> int | None:
        if given is not None or not isinstance(leaf, Tensor) or not leaf.dim():
            return given
        same = [dim for dim, found in free.items() if found == symbol]
        alike = [dim for dim, found in free.items() if found not in taken and leaf.shape[dim] == size]
        fixed = [0] if leaf.shape[0] == size and 0 not in free else []
        return next(iter((*same, *alike, *fixed)), None)

    return tuple(map(place, leaves, symbols, known))


def _batch(leaves: Sequence[Any], symbols: Sequence[Mapping[int, str]], known: BatchDims) -> tuple[str | None, int]:
    """The symbol of the batch, None where it is fixed, and its size in the example."""
    given = [(at, dim) for at, dim in enumerate(known) if dim is not None]
    given.sort(key=lambda place: place[1] not in symbols[place[0]])
    led = [(at, 0) for at, free in enumerate(symbols) if 0 in free]
    others = [(at, min(free)) for at, free in enumerate(symbols) if free]
    for at, dim in (*given, *led, *others)[:1]:
        return symbols[at].get(dim), int(leaves[at].shape[dim])
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
    return None, int(tensors[0].shape[0]) if tensors else 1


def user_inputs(program: ExportedProgram) -> list[fx.Node]:
    """The placeholders of what a program is called with, in its order."""
    named = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[name] for name in named]


def batch_dims_of_program(program: ExportedProgram) -> BatchDims:
    """The batch dimension of each input of an exported program: noted in its ``meta`` by this package, or found out."""
    leaves = leaves_of(*(program.example_inputs or ((), {})))
    noted: BatchDims = tuple(program.graph_module.meta.get(BATCH_DIMS, ()))
    if len(noted) != len(leaves):
        return batch_dims_of(leaves, symbols_of(user_inputs(program)))
    pairs = zip(leaves, noted, strict=True)
    if all(dim is None or (isinstance(leaf, Tensor) and dim < leaf.dim()) for leaf, dim in pairs):
        return noted
    return batch_dims_of(leaves, symbols_of(user_inputs(program)))
