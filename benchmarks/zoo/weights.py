"""Random weights that make every channel matter, for networks of any depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomise_(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Draw parameters and statistics, so that nothing is silent by initialisation (zero heads, layer scales of 1e-6).

    Batch norms then take their statistics from the example, varied by channel, or activations would vanish or
    overflow in a deep network and the comparison would say nothing.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            _draw_(name, tensor, generator)
        model.eval()
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        for norm in norms:
            norm.momentum, norm.training = 1.0, True
        if norms:
            model(*args, **kwargs)
        for norm in norms:
            norm.momentum, norm.training = 0.1, False
            _vary_(norm, generator)


def _draw_(name: str, tensor: torch.Tensor, generator: torch.Generator) -> None:
    """Matrices by their fan-in, scales around 1, shifts around 0; buffers that are tables keep their values."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    if not isinstance(tensor, nn.Parameter):
        return
    if tensor.dim() > 1 and tensor.numel() > max(tensor.shape):
        tensor.normal_(0, 1.2 * min(1.0, (tensor.shape[0] / tensor.numel()) ** 0.5), generator=generator)
    elif name.endswith(("weight", "gamma", "scale", "scale1", "scale2")) or bool((tensor == tensor.flatten()[0]).all()):
        tensor.uniform_(0.5, 1.5, generator=generator)
        if name.endswith(("bias", "beta")):
            tensor.sub_(1.0)
    else:
        tensor.normal_(0, 0.2, generator=generator)


def _vary_(norm: _BatchNorm, generator: torch.Generator) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return
    mean.add_(0.3 * variance.sqrt() * torch.randn(mean.shape, generator=generator))
    variance.mul_(0.5 + torch.rand(variance.shape, generator=generator)).add_(1e-3)
