"""Which sizes of the example inputs are free, in the form that ``torch.export`` wants, and whether they stayed so."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from l0compress.errors import CaptureError

Dynamic = Literal["batch", "batch+sequence"] | Mapping[str, Mapping[int, Any]] | None
KINDS = ("batch", "batch+sequence")

# What torch.export takes as a size: a named one, a hint such as Dim.AUTO, a number, or None for a fixed one.
_SIZES = (Dim, type(Dim.AUTO), int, type(None))


def batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The leading size of the first tensor input that has a dimension; 1 where there is none.

    Examples:
        >>> batch_of((torch.zeros(()),), {"x": torch.zeros(4, 3)})
        4
    """
    leaves = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor) and leaf.dim()]
    return int(leaves[0].shape[0]) if leaves else 1


def doubled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch of one as a batch of two: a size of 1 cannot be captured as dynamic."""

    def double(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == 1 else leaf

    return pytree.tree_map(double, (args, kwargs))


def dynamic_shapes_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic) -> Any:
    """What ``torch.export.export`` takes as ``dynamic_shapes``.

    Raises:
        CaptureError: the inputs do not fit the model's forward, or ``dynamic`` does not fit the inputs.
    """
    if dynamic is None:
        return None
    values = _named_inputs(model, args, kwargs)
    if isinstance(dynamic, Mapping):
        _check_names(dynamic, values)
        return {name: _dims(name, value, dynamic.get(name)) for name, value in values.items()}
    if dynamic not in KINDS:
        raise _unfit(repr(dynamic))
    size = batch_of(args, kwargs)

    def free(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != size:
            return None
        tokens = dynamic == "batch+sequence" and leaf.dim() >= 2 and (leaf.dim() == 2 and not leaf.is_floating_point())
        return {0: Dim.AUTO, 1: Dim.AUTO} if tokens else {0: Dim.AUTO}

    return pytree.tree_map(free, values)


def _check_names(dynamic: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    unknown = [name for name in dynamic if name not in values]
    if unknown:
        raise CaptureError(
            f"dynamic={dict(dynamic)!r} names the input {unknown[0]!r}, and the model is called with "
            f"{', '.join(map(repr, values)) or 'none'}. Nothing was changed. Use those names."
        )


def _dims(name: str, value: Any, given: Any) -> Any:
    """The free dimensions of one input; those of an input with tensors inside are torch.export's to check."""
    if given is None or not isinstance(value, Tensor):
        return given
    dims = dict(given) if isinstance(given, Mapping) else {}
    fits = [type(dim) is int and dim < value.dim() and isinstance(size, _SIZES) for dim, size in dims.items()]
    if not isinstance(given, Mapping) or not all(fits) or min(dims, default=0) < 0:
        raise _unfit(f"{{{name!r}: {given!r}}}, where the input has {value.dim()} dimensions")
    return dims or None


def _unfit(given: str) -> CaptureError:
    return CaptureError(
        f"dynamic={given}: expected {', '.join(map(repr, KINDS))}, None, or a dict such as "
        "{'x': {0: torch.export.Dim.AUTO}}, of inputs by name and their dimensions from 0. Nothing was changed."
    )


def _named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}. Nothing was changed."
        ) from error
    named: dict[str, Any] = {}
    for name, value in bound.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            raise CaptureError(
                f"{type(model).__name__}.forward takes {', '.join(map(repr, value))} through **{name}, where "
                "torch.export cannot leave sizes free. Nothing was changed. Wrap the model in a module whose forward "
                "names its inputs, or pass dynamic=None to fix all sizes."
            )
        named[name] = value
    return named


def by_graph_name(model: nn.Module, shapes: dict[str, Any] | None) -> dict[str, Any] | None:
    """The graph names each of ``*args`` by itself, as ``args_0``, ``args_1``."""
    if shapes is None:
        return None
    parameters = inspect.signature(model.forward).parameters
    named: dict[str, Any] = {}
    for name, entry in shapes.items():
        if name in parameters and parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            named.update({f"{name}_{i}": part for i, part in enumerate(entry or ())})
        else:
            named[name] = entry
    return named


def check_dynamic(module: fx.GraphModule, shapes: Any) -> None:
    """torch.export quietly turns an AUTO dimension into a constant when the model's code fixes it; that is an error."""
    wanted = [leaf for leaf in pytree.tree_leaves(shapes, is_leaf=_is_dim_map) if shapes is not None]
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(wanted) != len(placeholders):
        return
    for node, dims in zip(placeholders, wanted, strict=True):
        value = node.meta.get("val")
        for dim in (dim for dim, size in (dims or {}).items() if _is_free(size)):
            if isinstance(value, Tensor) and is_concrete_int(value.shape[dim]) and node.users:
                raise CaptureError(
                    f"the model's own code fixes dimension {dim} of input {node.name!r} to {int(value.shape[dim])}, so "
                    f"that size cannot be dynamic. Nothing was changed. Use x.shape[{dim}] or -1 instead of a literal "
                    "or len(x) in the model's forward, or capture with dynamic=None for this one size."
                )


def _is_free(size: Any) -> bool:
    return size is not None and not isinstance(size, int) and size != Dim.STATIC


def _is_dim_map(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and bool(value) and all(isinstance(key, int) for key in value))
