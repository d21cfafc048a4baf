"""Unwrap modules that only run another one."""

from __future__ import annotations

from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module behind ``DataParallel``, ``DistributedDataParallel``, ``torch.compile`` and averaged copies.

    Examples:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(torch.compile(nn.DataParallel(layer), backend="eager")) is layer
        True
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(model, OptimizedModule):
            model = model._orig_mod
        else:
            return model
