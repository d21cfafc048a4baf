"""The targets of a family, from how they are written to the budget and the epochs of each member.

A family is a list of targets in one unit, which one run meets one after another, from the largest to the smallest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from l0compress.errors import InputError, TargetError
from l0compress.graph.capture import CapturedGraph
from l0compress.training.latency_targets import Measure, allowances, measured_time
from l0compress.training.settings import TRAINED_METHODS, FinetuneSettings
from l0compress.training.targets import AbsoluteTarget, Target, parse_target, told

# A family of n members takes FIXED + EACH n times the epochs of one run, so one member as many and four 1.4 times as
# many. That leaves room for scores and repairs, which take time besides, once a member.
FIXED, EACH = Fraction(13, 15), Fraction(2, 15)
# How much faster than the logarithm of what is gone its harm grows.
DEPTH_POWER = 1.5
# No two members draw the same batches, and a run of another seed draws none of them either.
_SEED_STRIDE = 1_000_000_007


@dataclass(frozen=True)
class Leg:
    """What leads from one member of a family to the next.

    Attributes:
        name: the member's, which is its target as written.
        goal: the member's budget, as a share or a count of the dense model.
        settings: the run's, with the epochs and the seed of this leg.
    """

    name: str
    goal: AbsoluteTarget
    settings: FinetuneSettings


def parse_targets(text: str) -> tuple[Target, ...]:
    """Parse one target, or several with commas between them; those after the first need no unit.

    >>> [str(target) for target in parse_targets("macs=0.8,0.4, 12M")]
    ['macs=0.8', 'macs=0.4', 'macs=12000000']
    >>> parse_targets("bytes=1MB") == (parse_target("bytes=1MB"),)
    True

    Raises:
        TargetError: one of them is malformed, or they are in different units.
    """
    first, *others = text.split(",")
    unit = first.partition("=")[0].strip()
    found = [parse_target(first), *(parse_target(other if "=" in other else f"{unit}={other}") for other in others)]
    units = list(dict.fromkeys(target.unit for target in found))
    if len(units) > 1:
        raise TargetError(
            f"Target {text!r}: the members of a family have one unit, but here are {' and '.join(units)}.",
            fix="Write for example macs=0.8,0.4.",
        )
    return tuple(found)


def family_of(given: str | Iterable[Target | Mapping[str, float] | str]) -> tuple[Target, ...]:
    """Read the targets of a family as text, or one by one in every form that :meth:`Target.of` takes.

    >>> family_of("macs=0.8,0.4") == family_of([{"macs": 0.8}, "macs=0.4"])
    True

    Raises:
        TargetError: one is malformed, none is given, or they are in different units.
    """
    found = parse_targets(given) if isinstance(given, str) else tuple(Target.of(target) for target in given)
    if not found:
        raise TargetError("A family needs a target.", fix="Write for example 'macs=0.8,0.4'.")
    return parse_targets(",".join(map(str, found)))


def written(targets: Sequence[Target]) -> str:
    """Return targets as :func:`parse_targets` reads them.

    >>> written(parse_targets("macs=0.80,macs=0.4"))
    'macs=0.8,0.4'
    """
    numbers = [str(target).partition("=")[2] for target in targets]
    return f"{targets[0].unit}={','.join(numbers)}"


def legs_of(
    graph: CapturedGraph,
    targets: Sequence[Target],
    settings: FinetuneSettings,
    measure: Measure = measured_time,
) -> tuple[Leg, ...]:
    """The way from a dense graph down to the smallest of the targets, whatever their order.

    Raises:
        TargetError: a target that the graph does not exceed, or two that allow the same.
        InputError: too few epochs for so many members.
    """
    allowed = allowances(graph, settings, measure=measure)
    goals = sorted(map(allowed, targets), key=lambda goal: -goal.limit)
    unit, dense = goals[0].unit, goals[0].dense
    for larger, smaller in pairwise(goals):
        if larger.limit == smaller.limit:
            raise TargetError(
                f"Targets {larger.wanted} and {smaller.wanted} both allow {told(unit, smaller.limit, named=False)} of "
                f"{told(unit, dense, named=False)}.",
                fix="Name each member once.",
            )
    epochs = epochs_of_members([goal.limit / dense for goal in goals], settings)
    return tuple(
        Leg(str(goal.wanted), goal, replace(settings, epochs=count, seed=settings.seed + number * _SEED_STRIDE))
        for number, (goal, count) in enumerate(zip(goals, epochs, strict=True))
    )


def epochs_of_members(shares: Sequence[float], settings: FinetuneSettings) -> list[int]:
    """Divide the epochs of a family, ``FIXED + EACH * members`` times those of one run, among its members.

    ``shares`` are the members' sizes as shares of the dense model, largest first. A member's depth is the logarithm of
    the factor by which it is smaller than the dense model. It gets epochs in proportion to what its leg adds to the
    power ``DEPTH_POWER`` of the depth: the same factor does more harm to a network that has lost much already.

    >>> epochs_of_members([0.8, 0.6, 0.4, 0.25], FinetuneSettings(epochs=48))
    [4, 11, 21, 31]
    >>> epochs_of_members([0.5], FinetuneSettings(epochs=48))
    [48]

    Raises:
        InputError: there are too few to give each member the least that its method needs.
    """
    members = len(shares)
    total = math.floor((FIXED + EACH * members) * settings.epochs)
    least = _least(settings, total // members)
    if total < least * members:
        needed = math.ceil(least * members / (FIXED + EACH * members))
        raise InputError(
            f"epochs={settings.epochs} is too few for a family of {members}: each member needs at least {least}.",
            fix=f"Pass --epochs {needed} or more, or --epochs 0, where a score decides without training.",
        )
    depths = [0.0, *(math.log(1 / share) ** DEPTH_POWER for share in shares)]
    steps = [below - above for above, below in pairwise(depths)]
    # One by one, to the member that is furthest behind its share, so that the sum is exact.
    epochs = [least] * members
    for _ in range(total - least * members):
        behind = [wanted / sum(steps) * total - has for wanted, has in zip(steps, epochs, strict=True)]
        epochs[behind.index(max(behind))] += 1
    return epochs


def _least(settings: FinetuneSettings, even_share: int) -> int:
    """The fewest epochs of a member: with gates two, one for gates and one for the rest, where there are enough."""
    if settings.epochs == 0:
        return 0
    has_gates = settings.method in TRAINED_METHODS or settings.rounds_weights
    return 2 if has_gates and even_share >= 2 else 1
