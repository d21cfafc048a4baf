"""Optimizers of weights, their schedule, and their state after channels were removed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from l0compress.gates.decay import weight_groups
from l0compress.graph.cut.plan import Keeps, cut
from l0compress.training.held import divided_like, is_divided, whole
from l0compress.training.own_optim import HIGHEST, Factory, own_optimizer, own_rates, rate_at
from l0compress.training.settings import SCHEDULERS, FinetuneSettings


def weight_optimizer(
    parameters: Mapping[str, nn.Parameter],
    name: str | Factory,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """AdamW, SGD with momentum, or one of the user's own; biases, norms and other vectors are not decayed.

    Raises:
        InputError: the user's own cannot be made.
    """
    groups = weight_groups(parameters, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=True)
    return own_optimizer(name, groups, learning_rate=learning_rate)


def schedule_for(
    settings: FinetuneSettings, learning_rate: float, num_steps: int, *, floor: float = 0.0
) -> Callable[[float], float]:
    """The rate at a share of a phase's steps: a cosine from ``learning_rate`` to ``floor`` of it, or the user's own.

    Raises:
        InputError: the user's own scheduler cannot be made.
    """
    if settings.scheduler in SCHEDULERS:
        return lambda progress: learning_rate * cosine(progress, floor=floor)
    rates = own_rates(settings.scheduler, learning_rate=learning_rate, num_steps=max(num_steps, 1))
    return lambda progress: rate_at(rates, progress)


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


def set_learning_rate_(optimizer: torch.optim.Optimizer, learning_rate: float, *, highest: float) -> None:
    """Set the rate of every parameter group; one that came with a rate of its own gets the same share of that."""
    for group in optimizer.param_groups:
        group["lr"] = group[HIGHEST] * (learning_rate / highest) if HIGHEST in group else learning_rate


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
        clip_(list(parameters), clip)
    for optimizer in optimizers:
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()


def clip_(parameters: Sequence[nn.Parameter], largest: float) -> None:
    """Scale gradients down to a norm of ``largest`` over all of them, wherever they are divided or not."""
    kinds = [[p for p in parameters if is_divided(p) == divided] for divided in (False, True)]
    if not all(kinds):
        nn.utils.clip_grad_norm_(parameters, largest)
        return
    norms = [whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, largest, norm)


def carry_state_(
    optimizer: torch.optim.Optimizer,
    old: torch.optim.Optimizer,
    parameters: Mapping[str, tuple[nn.Parameter, nn.Parameter]],
    keeps: Mapping[str, Keeps],
) -> None:
    """Give ``optimizer`` the state of ``old``, sliced to what was kept of each parameter.

    ``parameters`` maps a name to (old parameter, new parameter), ``keeps`` a name to the kept indices of each dimension
    (None = all), as ``KeepPlan.parameter_keeps`` returns them. What is of another shape than its parameter, such as the
    mean of every row, cannot be sliced: where the parameter was cut its state begins anew.
    """
    if any(HIGHEST in group for group in old.param_groups):
        for group, before in zip(optimizer.param_groups, old.param_groups, strict=False):
            group.update({key: value for key, value in before.items() if key != "params"})
    for name, (before, after) in parameters.items():
        state = old.state.get(before)
        if not state or (before.shape != after.shape and any(_is_factored(value, before) for value in state.values())):
            continue
        optimizer.state[after] = {
            key: divided_like(cut(whole(value), keeps.get(name, ())).clone(), after)
            if isinstance(value, Tensor) and value.shape == before.shape
            else value
            for key, value in state.items()
        }


def _is_factored(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape
