"""What a run has to reach: a count that its network may not exceed, or the optimum under a fixed penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from l0compress.errors import TargetError
from l0compress.graph.capture import CapturedGraph
from l0compress.training.latency_targets import allowances
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import TARGET_UNITS, AbsoluteTarget, AnyTargets, Target, absolute_targets

CRITERIA = ("penalty", "aic", "bic")
_GOALS = "params, macs, bytes, int8_bytes, latency, penalty, aic and bic"


@dataclass(frozen=True)
class Criterion:
    """A fixed penalty on each parameter in place of a target: ``penalty`` (``value`` itself), ``aic`` or ``bic``."""

    name: str
    value: float = 1.0

    def multiplier(self, num_samples: int) -> float:
        """Return the loss per parameter, if the loss is a mean negative log-likelihood over so many samples.

        AIC (Akaike 1974) takes one nat a parameter, BIC (Schwarz 1978) half of ``ln N``.

        >>> [Criterion(name, 0.5).multiplier(100) for name in CRITERIA]
        [0.5, 0.01, 0.02302585092994046]
        """
        if self.name == "aic":
            return 1 / num_samples
        return math.log(num_samples) / (2 * num_samples) if self.name == "bic" else self.value


Goal = AbsoluteTarget | tuple[AbsoluteTarget, ...] | Criterion
AnyGoal = AnyTargets | Goal


def goal_for(graph: CapturedGraph, target: AnyGoal, settings: FinetuneSettings | None = None) -> Goal:
    """Return what a run has to reach on ``graph``: the counts that targets allow, or a fixed penalty.

    >>> import torch
    >>> from l0compress.graph.capture import capture
    >>> graph = capture(torch.nn.Linear(4, 25), (torch.zeros(2, 4),))
    >>> goal_for(graph, "macs=0.5").limit, goal_for(graph, {"bic": 1})
    (50, Criterion(name='bic', value=1))
    >>> [part.limit for part in goal_for(graph, ["macs=0.5", "params=0.6"])]
    [50, 75]

    Raises:
        TargetError: none is given, or a fixed penalty beside others, or a unit or number is wrong.
    """
    if isinstance(target, AbsoluteTarget | Criterion):
        return target
    listed = list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    found = [each for one in listed for each in _named(one)]
    criterion = next((each for each in found if isinstance(each, Criterion)), None)
    if criterion is None:
        first, *others = parts = absolute_targets(found, allowances(graph, settings))
        return parts if others or isinstance(target, tuple) else first
    if len(found) > 1:
        raise TargetError(
            f"{criterion.name!r} is a penalty in place of a budget, so no target can stand beside it.",
            fix=f"Omit {criterion.name}, or everything else.",
        )
    return criterion


def parts_of(goal: Goal) -> tuple[AbsoluteTarget, ...]:
    """Return the budgets of a goal, in the order in which they were asked for; none of a fixed penalty."""
    if isinstance(goal, Criterion):
        return ()
    return goal if isinstance(goal, tuple) else (goal,)


def budgets_of(goal: Goal) -> tuple[AbsoluteTarget, ...]:
    """Return the goal of a method that has to know how much may be left.

    Raises:
        TargetError: it is a fixed penalty.
    """
    if isinstance(goal, Criterion):
        raise TargetError(
            f"Target {goal.name!r} is not a budget, but a score needs one: params, macs, bytes, int8_bytes or latency.",
            fix="Example: macs=0.5; or learn gates, with method l0.",
        )
    return parts_of(goal)


def _named(target: Any) -> list[Target | AbsoluteTarget | Criterion]:
    """What one text, value or mapping names."""
    if isinstance(target, str):
        name, _, number = (piece.strip() for piece in target.partition("="))
        return [Criterion(name, _number(number, target)) if name in CRITERIA else Target.of(target)]
    if isinstance(target, AbsoluteTarget | Criterion):
        return [target]
    if not isinstance(target, Mapping):
        return [Target.of(target)]
    given = {unit: value for unit, value in target.items() if value is not None}
    unknown = next((unit for unit in given if unit not in (*TARGET_UNITS, *CRITERIA)), None)
    if unknown is not None:
        raise TargetError(f"Unknown target {unknown!r}: expected one of {_GOALS}.", fix="Example: macs=0.5.")
    if not given:
        raise TargetError(f"A target names at least one of {_GOALS}; given: none.", fix="Example: macs=0.5.")
    return [Criterion(unit, value) if unit in CRITERIA else Target.of({unit: value}) for unit, value in given.items()]


def _number(number: str, text: str) -> float:
    try:
        return float(number)
    except ValueError as reason:
        name = text.partition("=")[0].strip()
        raise TargetError(
            f"Target {text!r}: {number!r} is not a number.", fix=f"Write for example {name}=1."
        ) from reason
