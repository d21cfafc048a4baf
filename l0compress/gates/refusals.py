"""The error for a call that a gated network cannot carry out."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from l0compress.errors import InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.describe import input_text, input_texts

# What PyTorch and the packing of inputs raise for inputs that do not fit.
CALL_ERRORS = (RuntimeError, ValueError, TypeError)


def refused_call(graph: CapturedGraph, args: Any, kwargs: Any, dtype: torch.dtype | None) -> InputError | None:
    """Return the error for inputs that do not fit a network made from ``graph``; None if they fit.

    ``dtype`` is the current dtype of its floating-point weights.
    """
    given, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    wanted = [node for node in graph.nodes() if node.op == "placeholder"]
    takes = "; ".join(input_texts(graph.graph_module.graph))
    if spec != pytree.tree_structure((graph.example_args, graph.example_kwargs)):
        texts = [input_text(value) for value in args] + [f"{key}={input_text(v)}" for key, v in kwargs.items()]
        return InputError(
            f"the network was called with ({', '.join(texts)}), but takes {takes}.",
            fix="Call it as the model was called when it was captured.",
        )
    for node, value in zip(wanted, given, strict=True):
        sample = node.meta.get("val")
        if isinstance(sample, Tensor) and not (isinstance(value, Tensor) and _fits(value, sample)):
            return InputError(
                f"input {node.target!r} is {input_text(value)}, but the network takes {input_text(sample)}.",
                fix="Give inputs of that shape, or capture the model with the differing sizes free.",
            )
        if isinstance(value, Tensor) and value.is_floating_point() and dtype not in (None, value.dtype):
            name = str(dtype).removeprefix("torch.")
            return InputError(
                f"input {node.target!r} is {input_text(value)}, but the network's weights are {name}.",
                fix=f"Convert the input, x.to(torch.{name}), or the network, gated.to(x.dtype).",
            )
    return None


def _fits(value: Tensor, sample: Tensor) -> bool:
    fixed = [(size, is_concrete_int(size)) for size in sample.shape]
    return value.dim() == sample.dim() and all(
        not known or int(size) == mine for (size, known), mine in zip(fixed, value.shape, strict=True)
    )
