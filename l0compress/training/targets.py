"""Targets: ``macs=0.5``, ``params=26500``, ``bytes=1MB``, ``latency=5ms``, from how they are written to a count.

A :class:`Target` is what was asked for. :meth:`Target.on` turns it into an :class:`AbsoluteTarget`, the count that it
allows of one network; that value then goes unchanged to whatever has to keep within it. There may be several, each in
a unit of its own, which then hold together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from l0compress.errors import TargetError, did_you_mean
from l0compress.graph.groups import Groups
from l0compress.graph.groups.cost import UNITS
from l0compress.graph.groups.resource import Counted, Resource

# Measured on this machine, see :mod:`l0compress.latency`; in nanoseconds.
LATENCY = "latency"
TARGET_UNITS = (*UNITS, LATENCY)
LATENCY_SLACK = 0.1
UNIT_NAMES = {"params": "parameters", "macs": "MACs", "bytes": "bytes", "int8_bytes": "bytes of int8"}
_NANOSECONDS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
SMALLEST_COUNT = 100
_SCALES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([a-zA-Z]*)")
_BUDGETS = "params, macs, bytes, int8_bytes and latency"
# How Budget took bytes before they had one name everywhere.
_OLD_UNITS = {"size_bytes": "bytes"}
_HAS = {False: "has", True: "takes"}


@dataclass(frozen=True)
class Target:
    """A budget: at most ``value`` of ``unit``, as a fraction of the dense model or as an absolute count."""

    unit: str
    value: float | int
    is_fraction: bool

    @classmethod
    def of(cls, target: Target | Mapping[str, float] | str) -> Target:
        """Check ``{unit: number}``, where a float in (0, 1) is a fraction and a whole number is a count.

        Text is read by :func:`parse_target`; a target stays as it is.

        >>> Target.of({"params": 26_500})
        Target(unit='params', value=26500, is_fraction=False)
        >>> Target.of("macs=0.5") == Target.of({"macs": 0.5})
        True

        Raises:
            TargetError: there is not exactly one unit, or the unit or the number is wrong.
        """
        if isinstance(target, Target):
            return target
        if isinstance(target, str):
            return parse_target(target)
        if not isinstance(target, Mapping):
            raise TargetError(
                f"The target is {target!r}, but must be a unit with a number.", fix="Write for example 'macs=0.5'."
            )
        if len(target) != 1:
            raise TargetError(
                f"One target is needed, got {len(target)}: {dict(target)}. Write for example {{'macs': 0.5}}."
            )
        ((unit, value),) = target.items()
        return _checked(unit, value)

    def on(self, dense: int, model: Callable[[Groups], Resource] | None = None) -> AbsoluteTarget:
        """Return what the target allows of a model that costs ``dense`` in the same unit.

        >>> Target.of({"macs": 0.25}).on(1001).limit, Target.of({"macs": 400}).on(1001).limit
        (250, 400)

        Raises:
            TargetError: a count that the model does not exceed.
        """
        if not self.is_fraction and self.value >= dense:
            raise TargetError(
                f"Target {self}: the model already {_HAS[self.unit == LATENCY]} only {told(self.unit, dense)}, so "
                "there is nothing to remove.",
                fix=f"Ask for {_less_than(self.unit, dense)}, or for a fraction such as {self.unit}=0.5.",
            )
        return AbsoluteTarget(self, dense, int(self.value * dense) if self.is_fraction else int(self.value), model)

    def __str__(self) -> str:
        """Return the target as written on the command line."""
        if self.unit == LATENCY and not self.is_fraction:
            return f"{self.unit}={self.value / 1e6:g}ms"
        return f"{self.unit}={self.value}"


AnyTargets = Target | Mapping[str, float] | str | Sequence[Target | str]


@dataclass(frozen=True)
class AbsoluteTarget:
    """What a target allows of one model.

    Attributes:
        wanted: what was asked for.
        dense: what the model costs with nothing removed, in the target's unit.
        limit: the most that may be left, in the same unit.
        model: makes the resource of the groups of the dense network; None where the unit is counted.
    """

    wanted: Target
    dense: int
    limit: int
    model: Callable[[Groups], Resource] | None = field(default=None, compare=False)

    def resource(self, groups: Groups) -> Resource:
        """Return what the target is on, as a function of the moves of the dense network."""
        return Counted(groups, self.unit) if self.model is None else self.model(groups)

    @property
    def unit(self) -> str:
        """``params``, ``macs``, ``bytes`` or ``int8_bytes``."""
        return self.wanted.unit

    @property
    def allowed(self) -> int:
        """The most that a finished model may use: times are measured, and no two measurements agree to the last bit."""
        return self.limit if self.model is None else int(self.limit * (1 + LATENCY_SLACK))

    def missed_by(self, least: int) -> str:
        """Return what is wrong where ``least``, the cost of the smallest model in reach, is more than the limit."""
        return (
            f"Target {self.wanted}: at most {told(self.unit, self.limit)} cannot be reached. With everything "
            f"removed that can be removed, {told(self.unit, least, named=False)} of "
            f"{told(self.unit, self.dense, named=False)} stay ({least / self.dense:.4f})."
        )

    def reachable(self, least: int) -> str:
        """Return the target to ask for instead, as written on the command line."""
        return f"{self.unit}={math.ceil(least / self.dense * 1000 + 1) / 1000}"


def targets_of(targets: AnyTargets | None) -> tuple[Target, ...]:
    """Return all that is given, each as a :class:`Target`; a number of None counts as not given.

    >>> [str(target) for target in targets_of({"macs": 0.5, "bytes": 4_000_000, "params": None})]
    ['macs=0.5', 'bytes=4000000']
    >>> targets_of(["macs=0.5", "bytes=4MB"]) == targets_of({"macs": 0.5, "bytes": 4_000_000})
    True

    Raises:
        TargetError: none is given, or two are in the same unit, or unit or number are wrong.
    """
    found = [target for each in _listed(targets) for target in _each(each)]
    _check_distinct(found)
    return tuple(found)


def absolute_targets(
    targets: Any, allowed: Callable[[Target], AbsoluteTarget], **units: Any
) -> tuple[AbsoluteTarget, ...]:
    """Return what all that is given allows of one model; ``allowed`` says it of one target.

    What is an :class:`AbsoluteTarget` already stays as it is.

    >>> dense = {"macs": 10, "params": 100}
    >>> found = absolute_targets("macs=0.5", lambda target: target.on(dense[target.unit]), params=0.25)
    >>> [target.limit for target in found]
    [5, 25]

    Raises:
        TargetError: as :func:`targets_of` and :meth:`Target.on`.
    """
    found: list[AbsoluteTarget] = []
    for each in (*_listed(targets), units):
        done = isinstance(each, AbsoluteTarget)
        found += [each] if done else [allowed(target) for target in _each(each)]
    _check_distinct([target.wanted for target in found])
    return tuple(found)


def _listed(targets: Any) -> list[Any]:
    given = {} if targets is None else targets
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _check_distinct(targets: Sequence[Target]) -> None:
    if not targets:
        raise TargetError(f"A target names at least one of {_BUDGETS}; given: none.", fix="Example: macs=0.5.")
    by_unit: dict[str, Target] = {}
    for target in targets:
        other = by_unit.setdefault(target.unit, target)
        if other is not target:
            raise TargetError(f"There are two targets in one unit: {other} and {target}.", fix="Leave one of them out.")


def _each(targets: Any) -> list[Target]:
    """The targets in one text, value or mapping."""
    if not isinstance(targets, Mapping):
        return [Target.of(targets)]
    return [
        _checked(_OLD_UNITS.get(str(unit), str(unit)), value) for unit, value in targets.items() if value is not None
    ]


def parse_target(text: str) -> Target:
    """Parse a target such as ``macs=0.5`` (a fraction of dense), ``params=26500`` or ``bytes=1.5MB`` (absolute).

    Suffixes k, M and G are decimal; bytes also take B, kB, MB and GB. ``int8-bytes`` means ``int8_bytes``.

    >>> parse_target("macs=0.25")
    Target(unit='macs', value=0.25, is_fraction=True)
    >>> parse_target("macs=12M").value, parse_target("int8-bytes=1.5MB").value
    (12000000, 1500000)
    >>> parse_target("latency=2.5ms").value, parse_target("latency=0.5").is_fraction
    (2500000, True)

    Raises:
        TargetError: the form, the unit or the number is wrong.
    """
    unit, equals, number = (part.strip() for part in text.partition("="))
    if not equals:
        raise TargetError(f"Target {text!r} has no '='. Write a unit and a number, such as macs=0.5.")
    unit = unit.replace("-", "_") if unit.replace("-", "_") in TARGET_UNITS else unit
    _check_unit(unit, text)
    match = _NUMBER.fullmatch(number)
    if match is None:
        raise TargetError(
            f"Target {text!r}: {number!r} is not a positive number. Write a fraction such as {unit}=0.5, or a count "
            f"such as {unit}=26500 or {unit}=12M."
        )
    digits, suffix = match.groups()
    if unit == LATENCY and suffix:
        return _time(text, digits, suffix)
    if unit.endswith("bytes"):
        suffix = suffix.removesuffix("B")
    if suffix.lower() not in _SCALES:
        raise TargetError(f"Target {text!r}: unknown suffix {match[2]!r}. Known suffixes are k, M and G.")
    value = float(digits) * _SCALES[suffix.lower()]
    return _checked(unit, value if not suffix and "." in digits else round(value))


def _checked(unit: str, value: Any) -> Target:
    text = f"{unit}={value}"
    _check_unit(unit, text)
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TargetError(
            f"Target {text!r}: {value!r} is {type(value).__name__}, but must be a number.",
            fix=f"Write for example {{{unit!r}: 0.5}}.",
        )
    number = float(value)
    if 0 < number < 1:
        return Target(unit, number, True)
    if number >= SMALLEST_COUNT and number.is_integer():
        return Target(unit, int(number), False)
    raise TargetError(
        f"Target {text!r} is out of range. A fraction of the dense model lies between 0 and 1 (such as {unit}=0.5); "
        f"an absolute count is an integer of at least {SMALLEST_COUNT} (such as {unit}=26500)."
    )


def _check_unit(unit: str, text: str) -> None:
    if unit not in TARGET_UNITS:
        said = f"Target {text!r}: {unit!r} is not a unit of a target. Supported units are {', '.join(TARGET_UNITS)}."
        meant = did_you_mean(unit, TARGET_UNITS)
        raise TargetError(f"{said} {meant}" if meant else said)


def _time(text: str, digits: str, suffix: str) -> Target:
    if suffix not in _NANOSECONDS:
        raise TargetError(f"Target {text!r}: unknown suffix {suffix!r}. Known suffixes are {', '.join(_NANOSECONDS)}.")
    return _checked(LATENCY, round(float(digits) * _NANOSECONDS[suffix]))


def _less_than(unit: str, number: int) -> str:
    return f"less than {told(unit, number)}" if unit == LATENCY else f"fewer than {number}"


def told(unit: str, number: int, *, named: bool = True) -> str:
    """Return an amount of a unit for people.

    >>> told("macs", 12000), told("latency", 2_345_678), told("macs", 12000, named=False)
    ('12,000 MACs', '2.35 ms', '12,000')
    """
    if unit == LATENCY:
        return f"{number / 1e6:.3g} ms"
    return f"{number:,} {UNIT_NAMES[unit]}" if named else f"{number:,}"
