"""Unwrap modules that only run another one."""

from __future__ import annotations

from torch import fx, nn
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


def traceable(model: nn.Module) -> nn.Module:
    """Return the module behind wrappers as one whose mode can be changed, as ``torch.export`` does to trace it.

    The ``module()`` of an exported program refuses ``eval()``; one with the same graph and parameters does not.

    Examples:
        >>> import torch
        >>> program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(3, 2),))
        >>> sorted(dict(traceable(program.module()).eval().named_parameters()))
        ['bias', 'weight']
    """
    model = unwrapped(model)
    if isinstance(model, fx.GraphModule) and "eval" in vars(model):
        return fx.GraphModule(model, model.graph)
    return model
