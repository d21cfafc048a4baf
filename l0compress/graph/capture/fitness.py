"""Which modules cannot be captured for what their weights are, said before anything is traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from l0compress.errors import CaptureError

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


def check_weights(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a module whose weights have no values yet, or are of a kind of which no channel can be removed.

    Raises:
        CaptureError: names the weight or the layer, and says what to do.

    Examples:
        >>> check_weights(nn.Linear(2, 2), (torch.zeros(1, 2),), {})
    """
    leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
    on_meta = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves)
    for what, why, way_out in _faults(model, on_meta):
        raise CaptureError(f"{what} of {type(model).__name__} {why}.", fix=f"{way_out}")


def _faults(model: nn.Module, on_meta: bool) -> Iterator[tuple[str, str, str]]:
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith(_QUANTIZED):
            yield (
                f"layer {name!r}",
                f"is quantized ({kind.__module__.rpartition('.modules')[0] or kind.__module__}.{kind.__name__}): its "
                "weights are packed integers, which can neither be cut nor trained",
                "Compress the float model, and quantize the result: l0compress export --quantize.",
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        fault = _fault(tensor, on_meta)
        if fault is not None:
            yield f"{'weight' if isinstance(tensor, nn.Parameter) else 'buffer'} {name!r}", *fault


def _fault(tensor: Tensor, on_meta: bool) -> tuple[str, str] | None:
    if is_lazy(tensor):
        return "has no shape yet, because its lazy layer has never run", "Run the model once on an input."
    if tensor.is_meta and not on_meta:
        return (
            "is on the meta device and holds no values",
            "Load its weights first, for example with load_state_dict(state, assign=True).",
        )
    if tensor.is_quantized:
        return (
            "is quantized, so it can be neither cut nor trained",
            "Compress the float model, and quantize afterwards.",
        )
    if tensor.layout is not torch.strided:
        return (
            f"is sparse ({tensor.layout}), and only dense weights can be cut",
            "Make it dense with to_dense(): the zeros stay zeros, and export to a sparse bundle leaves them out.",
        )
    if tensor.is_complex() and isinstance(tensor, nn.Parameter):
        return (
            f"is complex ({tensor.dtype}), and gates and budgets are of real weights",
            "Keep its real and its imaginary part as two parameters, and build the complex tensor in the forward.",
        )
    return None
