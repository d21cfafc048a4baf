"""Optimizers of weights, their schedule, and their state after channels were removed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from l0compress.errors import InputError
from l0compress.gates.decay import weight_groups
from l0compress.graph.cut.plan import Keeps, cut
from l0compress.training.settings import OPTIMIZERS


def weight_optimizer(
    parameters: Mapping[str, nn.Parameter],
    name: str,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum over named parameters; biases, norms and other vectors are not decayed.

    Raises:
        InputError: an unknown name of an optimizer.
    """
    groups = weight_groups(parameters, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=True)
    raise InputError(f"Unknown optimizer {name!r}: expected one of {', '.join(OPTIMIZERS)}.", fix="")


def cosine(progress: float, *, floor: float = 0.0, warmup: float = 0.0) -> float:
    """The share of the base learning rate in force: linear from 0 over ``warmup``, then a cosine from 1 to ``floor``.

    >>> [round(cosine(progress, floor=0.3), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.65, 0.3]
    >>> round(cosine(0.05, warmup=0.1), 3)
    0.5
    """
    if progress < warmup:
        return progress / warmup
    progress = min((progress - warmup) / (1 - warmup), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate_(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def update_(
    parameters: Iterable[nn.Parameter],
    optimizers: Iterable[torch.optim.Optimizer],
    *,
    clip: float | None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Clip the norm of the gradients of ``parameters``, take a step with each optimizer, and clear the gradients.

    ``scaler`` scaled the loss, if it is there and enabled. An optimizer whose gradients overflowed takes no step, and
    the scale falls.
    """
    optimizers = tuple(optimizers)
    scaler = torch.amp.GradScaler("cpu", enabled=False) if scaler is None else scaler
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()


def carry_state_(
    optimizer: torch.optim.Optimizer,
    old: torch.optim.Optimizer,
    parameters: Mapping[str, tuple[nn.Parameter, nn.Parameter]],
    keeps: Mapping[str, Keeps],
) -> None:
    """Give ``optimizer`` the state of ``old``, sliced to what was kept of each parameter.

    ``parameters`` maps a name to (old parameter, new parameter), ``keeps`` a name to the kept indices of each dimension
    (None = all), as ``KeepPlan.parameter_keeps`` returns them.
    """
    for name, (before, after) in parameters.items():
        state = old.state.get(before)
        if not state:
            continue
        optimizer.state[after] = {
            key: cut(value, keeps.get(name, ())).clone()
            if isinstance(value, Tensor) and value.shape == before.shape
            else value
            for key, value in state.items()
        }
