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
from l0compress.training.targets import TARGET_UNITS, AbsoluteTarget, AnyTargets, Target, absolute_targets, targets_of

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

    def __str__(self) -> str:
        """Return it as :func:`parse_penalty` reads it."""
        return self.name if self.name != "penalty" else f"{self.value:g}"


def parse_penalty(given: str | float) -> Criterion:
    """Return the fixed penalty that a text or number stands for: a criterion's name, or the loss per parameter.

    >>> parse_penalty("bic"), parse_penalty("1e-6")
    (Criterion(name='bic', value=1.0), Criterion(name='penalty', value=1e-06))

    Raises:
        TargetError: it is neither.
    """
    if given in CRITERIA[1:]:
        return Criterion(str(given))
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise TargetError(
            f"Penalty {str(given)!r}: expected a finite number, 0 or more, or {' or '.join(CRITERIA[1:])}.",
            fix="Write for example --penalty bic, or --penalty 1e-6: loss for each parameter.",
        )
    return Criterion("penalty", value)


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
    found = _all_named(target)
    criterion = _only_criterion(found)
    if criterion is None:
        first, *others = parts = absolute_targets(found, allowances(graph, settings))
        return parts if others or isinstance(target, tuple) else first
    return criterion


def wanted_of(target: Any) -> tuple[Target, ...] | Criterion:
    """Return what is asked for before there is a graph: targets, or a fixed penalty.

    >>> wanted_of("bic=1"), [str(one) for one in wanted_of({"macs": 0.5})]
    (Criterion(name='bic', value=1.0), ['macs=0.5'])

    Raises:
        TargetError: as :func:`goal_for`.
    """
    listed = list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    penalized = any(isinstance(each, Criterion) or _names_criterion(each) for each in listed)
    criterion = _only_criterion(_all_named(target)) if penalized else None
    return targets_of(target) if criterion is None else criterion


def _names_criterion(target: Any) -> bool:
    if isinstance(target, Mapping):
        return any(name in CRITERIA for name, value in target.items() if value is not None)
    return isinstance(target, str) and target.partition("=")[0].strip() in CRITERIA


def _all_named(target: Any) -> list[Target | AbsoluteTarget | Criterion]:
    listed = list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    return [each for one in listed for each in _named(one)]


def _only_criterion(found: Sequence[Target | AbsoluteTarget | Criterion]) -> Criterion | None:
    criterion = next((each for each in found if isinstance(each, Criterion)), None)
    if criterion is not None and len(found) > 1:
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
