"""Targets: ``macs=0.5``, ``params=26500``, ``bytes=1MB``, ``int8-bytes=0.25``, from how they are written to a count.

A :class:`Target` is what was asked for. :meth:`Target.on` turns it into an :class:`AbsoluteTarget`, the count that it
allows of one network; that value then goes unchanged to whatever has to keep within it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from l0compress.errors import TargetError
from l0compress.gates.reach import smallest_cost
from l0compress.graph.groups import Groups
from l0compress.graph.groups.cost import UNITS

UNIT_NAMES = {"params": "parameters", "macs": "MACs", "bytes": "bytes", "int8_bytes": "bytes of int8"}
SMALLEST_COUNT = 100
_SCALES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([a-zA-Z]*)")
_BUDGETS = "params, macs, bytes and int8_bytes"
# How Budget took bytes before they had one name everywhere.
_OLD_UNITS = {"size_bytes": "bytes"}


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

    def on(self, dense: int) -> AbsoluteTarget:
        """Return what the target allows of a model that costs ``dense`` in the same unit.

        >>> Target.of({"macs": 0.25}).on(1001).limit, Target.of({"macs": 400}).on(1001).limit
        (250, 400)

        Raises:
            TargetError: a count that the model does not exceed.
        """
        if not self.is_fraction and self.value >= dense:
            raise TargetError(
                f"Target {self}: the model already has only {dense:,} {UNIT_NAMES[self.unit]}, so there is nothing to "
                "remove.",
                fix=f"Ask for fewer than {dense}, or for a fraction such as {self.unit}=0.5.",
            )
        return AbsoluteTarget(self, dense, int(self.value * dense) if self.is_fraction else int(self.value))

    def __str__(self) -> str:
        """Return the target as written on the command line."""
        return f"{self.unit}={self.value}"


@dataclass(frozen=True)
class AbsoluteTarget:
    """What a target allows of one model.

    Attributes:
        wanted: what was asked for.
        dense: what the model costs with nothing removed, in the target's unit.
        limit: the most that may be left, in the same unit.
    """

    wanted: Target
    dense: int
    limit: int

    @property
    def unit(self) -> str:
        """``params``, ``macs``, ``bytes`` or ``int8_bytes``."""
        return self.wanted.unit

    def check_reachable(self, least: int) -> None:
        """Refuse a target below ``least``, the cost of the smallest model that removal can reach.

        Raises:
            TargetError: it is; the message names the share that can be reached.
        """
        if least <= self.limit:
            return
        share = least / self.dense
        raise TargetError(
            f"Target {self.wanted}: at most {self.limit:,} {UNIT_NAMES[self.unit]} cannot be reached. With everything "
            f"removed that can be removed, {least:,} of {self.dense:,} stay ({share:.4f}).",
            fix=f"Ask for {self.unit}={math.ceil(share * 1000 + 1) / 1000} or more.",
        )


def named_target(target: Target | Mapping[str, float] | str | None, units: Mapping[str, Any]) -> Target:
    """Return the one target that ``target`` and keywords name together; a keyword of None counts as not given.

    >>> named_target({"macs": 0.5}, {}) == named_target("macs=0.5", {}) == named_target(None, {"macs": 0.5})
    True

    Raises:
        TargetError: none or several are given, or unit or number are wrong.
    """
    if target is not None and not isinstance(target, Mapping):
        parsed = Target.of(target)
        target = {parsed.unit: parsed.value}
    unit, value = the_one((*(target or {}).items(), *units.items()), _BUDGETS)
    return _checked(_OLD_UNITS.get(unit, unit), value)


def the_one(named: Iterable[tuple[str, Any]], names: str) -> tuple[str, Any]:
    """Return the one unit that has a number, and the number; ``names`` are the units to choose from, for the message.

    >>> the_one((("params", None), ("macs", 0.5)), "params and macs")
    ('macs', 0.5)

    Raises:
        TargetError: none or several are given.
    """
    given = [(unit, value) for unit, value in named if value is not None]
    if len(given) != 1:
        shown = " and ".join(str(unit) for unit, _ in given) or "none"
        raise TargetError(f"A target names exactly one of {names}; given: {shown}.", fix="Example: macs=0.5.")
    return given[0]


def parse_target(text: str) -> Target:
    """Parse a target such as ``macs=0.5`` (a fraction of dense), ``params=26500`` or ``bytes=1.5MB`` (absolute).

    Suffixes k, M and G are decimal; bytes also take B, kB, MB and GB. ``int8-bytes`` means ``int8_bytes``.

    >>> parse_target("macs=0.25")
    Target(unit='macs', value=0.25, is_fraction=True)
    >>> parse_target("macs=12M").value, parse_target("int8-bytes=1.5MB").value
    (12000000, 1500000)

    Raises:
        TargetError: the form, the unit or the number is wrong.
    """
    unit, equals, number = (part.strip() for part in text.partition("="))
    if not equals:
        raise TargetError(f"Target {text!r} has no '='. Write a unit and a number, such as macs=0.5.")
    unit = unit.replace("-", "_") if unit.replace("-", "_") in UNITS else unit
    _check_unit(unit, text)
    match = _NUMBER.fullmatch(number)
    if match is None:
        raise TargetError(
            f"Target {text!r}: {number!r} is not a positive number. Write a fraction such as {unit}=0.5, or a count "
            f"such as {unit}=26500 or {unit}=12M."
        )
    digits, suffix = match.groups()
    if unit.endswith("bytes"):
        suffix = suffix.removesuffix("B")
    if suffix.lower() not in _SCALES:
        raise TargetError(f"Target {text!r}: unknown suffix {match[2]!r}. Known suffixes are k, M and G.")
    value = float(digits) * _SCALES[suffix.lower()]
    return _checked(unit, value if not suffix and "." in digits else round(value))


def dense_cost(groups: Groups, unit: str) -> int:
    """Return the cost, in ``unit``, with nothing removed."""
    return groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)).get(unit)


def check_reachable(goal: AbsoluteTarget, groups: Groups, smallest: Callable[[str], int] | None = None) -> None:
    """Refuse a target that no removal can reach; by default only channels are removed.

    ``smallest`` returns the cost, in a unit, of the smallest model that can be reached.

    Raises:
        TargetError: see :meth:`AbsoluteTarget.check_reachable`.
    """
    goal.check_reachable(smallest_cost(groups, goal.unit) if smallest is None else smallest(goal.unit))


def check_countable(unit: str, *, single_weights: bool) -> None:
    """Refuse a unit in which what is to be removed costs nothing.

    >>> check_countable("int8_bytes", single_weights=False)

    Raises:
        TargetError: the bytes of an int8 file, where single weights become zero.
    """
    if unit == "int8_bytes" and single_weights:
        raise TargetError(
            "Target int8_bytes: an int8 file stores a zero as it stores any other weight, so it does not shrink with "
            "single weights.",
            fix="Pass --granularity structured, or name params, macs or bytes.",
        )


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
    if unit not in UNITS:
        raise TargetError(
            f"Target {text!r}: {unit!r} is not a unit of a target. Supported units are {', '.join(UNITS)}."
        )
