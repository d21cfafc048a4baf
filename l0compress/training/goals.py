"""What a run has to reach: a count that its network may not exceed, or the optimum under a fixed penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from l0compress.errors import TargetError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.cost import UNITS, cost
from l0compress.training.targets import AbsoluteTarget, Target, parse_target, the_one

CRITERIA = ("penalty", "aic", "bic")
_GOALS = "params, macs, bytes, int8_bytes, penalty, aic and bic"


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


Goal = AbsoluteTarget | Criterion
AnyTarget = Target | Goal | Mapping[str, float] | str


def goal_for(graph: CapturedGraph, target: AnyTarget) -> Goal:
    """Return what a run has to reach on ``graph``: the count that a target allows, or a fixed penalty.

    >>> import torch
    >>> from l0compress.graph.capture import capture
    >>> graph = capture(torch.nn.Linear(4, 25), (torch.zeros(2, 4),))
    >>> goal_for(graph, "macs=0.5").limit, goal_for(graph, {"bic": 1})
    (50, Criterion(name='bic', value=1))

    Raises:
        TargetError: none or several are given, or the unit or the number is wrong.
    """
    if isinstance(target, AbsoluteTarget | Criterion):
        return target
    found = _target_or_criterion(target)
    return found if isinstance(found, Criterion) else found.on(cost(graph).get(found.unit))


def budget_of(goal: Goal) -> AbsoluteTarget:
    """Return the goal of a method that has to know how much may be left.

    Raises:
        TargetError: it is a fixed penalty.
    """
    if isinstance(goal, Criterion):
        raise TargetError(
            f"Target {goal.name!r} is not a budget, but a score needs one: params, macs, bytes or int8_bytes.",
            fix="Example: macs=0.5; or learn gates, with method l0.",
        )
    return goal


def _target_or_criterion(target: Target | Mapping[str, float] | str) -> Target | Criterion:
    if isinstance(target, str):
        name, _, number = (piece.strip() for piece in target.partition("="))
        return Criterion(name, _number(number, target)) if name in CRITERIA else parse_target(target)
    if not isinstance(target, Mapping):
        return Target.of(target)
    unit, value = the_one(target.items(), _GOALS)
    if unit in CRITERIA:
        return Criterion(unit, value)
    if unit not in UNITS:
        raise TargetError(f"Unknown target {unit!r}: expected one of {_GOALS}.", fix="Example: macs=0.5.")
    return Target.of({unit: value})


def _number(number: str, text: str) -> float:
    try:
        return float(number)
    except ValueError as reason:
        name = text.partition("=")[0].strip()
        raise TargetError(
            f"Target {text!r}: {number!r} is not a number.", fix=f"Write for example {name}=1."
        ) from reason
