"""Optimizers and schedulers of the user's own choice, made by factories, so that both can be made again.

A phase makes an optimizer when it begins, when channels are removed under way, and when a run goes on. What
an optimizer keeps for each parameter goes into the run's state. A scheduler is asked once for all its rates, which are
then looked up by the step: nothing of it has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from l0compress.errors import InputError
from l0compress.loading.references import FOREIGN_ERRORS, first_line, import_reference

HIGHEST = "initial_lr"  # where torch's own schedulers keep it
Factory = Callable[..., Any]


def own_optimizer(factory: str | Factory, groups: list[dict[str, Any]], *, learning_rate: float) -> Optimizer:
    """The optimizer that ``factory(groups, lr=learning_rate)`` returns, as a class of ``torch.optim`` does.

    Every group keeps the rate that it comes with as its highest one; the schedule scales it.

    Raises:
        InputError: the factory fails, or returns no optimizer of just these parameters.
    """
    optimizer = _called(factory, "--optimizer", groups, lr=learning_rate)
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"--optimizer {_name(factory)} returned {type(optimizer).__name__}, not a torch.optim.Optimizer.",
            fix="Name a function of (param_groups, lr) that returns one, such as torch.optim:NAdam.",
        )
    wanted = {id(parameter) for group in groups for parameter in group["params"]}
    found = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if wanted != found:
        raise InputError(
            f"--optimizer {_name(factory)} returned an optimizer of {len(found)} parameters, but was given "
            f"{len(wanted)}.",
            fix="Hand on the groups of parameters as they are.",
        )
    for group in optimizer.param_groups:
        group[HIGHEST] = group["lr"]
    return optimizer


def own_rates(scheduler: str | Factory, *, learning_rate: float, num_steps: int) -> tuple[float, ...]:
    """The rate of each step of a phase, from the scheduler that ``scheduler(optimizer, num_steps)`` returns.

    >>> from torch.optim.lr_scheduler import LinearLR
    >>> def falling(optimizer, num_steps):
    ...     return LinearLR(optimizer, 1.0, 0.5, total_iters=num_steps)
    >>> own_rates(falling, learning_rate=1.0, num_steps=4)
    (1.0, 0.875, 0.75, 0.625)

    Raises:
        InputError: the factory fails, or returns no scheduler that knows its rates beforehand.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate, momentum=0.9)
    made = _called(scheduler, "--scheduler", optimizer, num_steps)
    if not isinstance(made, LRScheduler) or isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise InputError(
            f"--scheduler {_name(scheduler)} returned {type(made).__name__}, which does not know its rates beforehand.",
            fix="Name a function of (optimizer, num_steps) that returns a torch.optim.lr_scheduler.LRScheduler.",
        )
    rates: list[float] = []
    for _ in range(num_steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if len(rates) < num_steps:
            _step(made, scheduler)
    return tuple(rates)


def rate_at(rates: Sequence[float], progress: float) -> float:
    """The rate at a share of the steps.

    >>> [rate_at((4.0, 3.0, 2.0, 1.0), step / 4) for step in range(5)]
    [4.0, 3.0, 2.0, 1.0, 1.0]
    """
    return rates[min(round(progress * len(rates)), len(rates) - 1)]


def plain_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """What an optimizer of the user's own keeps that is no tensor: plain values by parameter, and those of its groups.

    Raises:
        InputError: a run could not go on with what it keeps.
    """
    by_parameter = {
        f"{name}.{key}": _plain(optimizer, key, value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if not isinstance(value, torch.Tensor)
    }
    groups = [
        {key: _plain(optimizer, key, value) for key, value in group.items() if key not in ("params", "lr", HIGHEST)}
        for group in optimizer.param_groups
    ]
    return {"parameters": by_parameter, "groups": groups}


def load_plain_state_(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Any]) -> None:
    """Give a fresh optimizer what :func:`plain_state` returned."""
    for path, value in state["parameters"].items():
        name, _, key = path.rpartition(".")
        optimizer.state[parameters[name]][key] = value
    for group, values in zip(optimizer.param_groups, state["groups"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _plain(optimizer: Optimizer, key: str, value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, tuple | list) and all(isinstance(each, float | int | str) for each in value):
        return list(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"{type(optimizer).__name__} keeps {key!r} as {type(value).__name__}, which a run could not go on with.",
        fix="Choose an optimizer that keeps tensors and numbers for each parameter.",
    )


def _called(factory: str | Factory, flag: str, *args: Any, **kwargs: Any) -> Any:
    function = import_reference(factory, flag=flag) if isinstance(factory, str) else factory
    if not callable(function):
        raise InputError(f"{flag} {_name(factory)} cannot be called.", fix="Name a function.")
    try:
        return function(*args, **kwargs)
    except FOREIGN_ERRORS as reason:
        raise InputError(
            f"{flag} {_name(factory)} failed when it was called ({first_line(reason)}).",
            fix="Check the function and what it is given.",
        ) from reason


def _step(scheduler: LRScheduler, factory: str | Factory) -> None:
    try:
        scheduler.step()
    except FOREIGN_ERRORS as reason:
        raise InputError(
            f"--scheduler {_name(factory)} failed in a step ({first_line(reason)}).",
            fix="It is stepped once for each of num_steps steps.",
        ) from reason


def _name(factory: str | Factory) -> str:
    return repr(factory) if isinstance(factory, str) else getattr(factory, "__name__", type(factory).__name__)
