"""Batch norm in training mode, by the statistics of the samples at hand or of those that other processes have too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from l0compress.errors import InputError

# Adds a tensor up over all processes, differentiably.
Total = Callable[[Tensor], Tensor]
_TOTAL: ContextVar[Total | None] = ContextVar("total", default=None)


@contextmanager
def statistics_over(total: Total) -> Iterator[None]:
    """Let batch norms in training mode count the samples of all processes, which ``total`` adds up.

    >>> x, twice = torch.randn(4, 3), lambda tensor: 2 * tensor  # two processes with the same samples
    >>> arguments = None, None, None, None, True, 0.1, 1e-5, False
    >>> with statistics_over(twice):
    ...     together = batch_norm(x, *arguments)
    >>> torch.allclose(together, batch_norm(x, *arguments), atol=1e-6)
    True
    """
    token = _TOTAL.set(total)
    try:
        yield
    finally:
        _TOTAL.reset(token)


def batch_norm(input: Tensor, *arguments: Any) -> Tensor:
    """``aten.batch_norm`` in training mode, for an input ``(n, channels, ...)`` with more than one value per channel.

    Raises:
        InputError: there is one: its variance is not defined, and the running variance would become NaN in silence.
    """
    total = _TOTAL.get()
    if total is not None:
        return _over_all(input, total, *arguments)
    if input.numel() == input.shape[1]:
        raise _one_value(input)
    return torch.ops.aten.batch_norm.default(input, *arguments)


def _over_all(input: Tensor, total: Total, weight: Tensor | None, bias: Tensor | None, *arguments: Any) -> Tensor:
    running_mean, running_var, _, momentum, eps, _ = arguments
    dims = [0, *range(2, input.dim())]
    shape = [1, -1, *[1] * (input.dim() - 2)]
    x = input if input.dtype == torch.float64 else input.float()
    count = float(total(x.new_tensor(float(x.numel() // x.shape[1]))))
    if count < 2:
        raise _one_value(input)
    mean = total(x.sum(dims)) / count
    away = x - mean.view(shape)
    variance = total(away.square().sum(dims)) / count
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    result = away * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        result = result * weight.view(shape)
    if bias is not None:
        result = result + bias.view(shape)
    return result.to(input.dtype)


def _one_value(input: Tensor) -> InputError:
    return InputError(
        f"Expected more than 1 value per channel when training, got an input of shape {tuple(input.shape)} for a "
        "batch norm.",
        fix="Give batches of two samples or more, or call .eval() first.",
    )
