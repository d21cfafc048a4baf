"""Budgets as text: ``macs=0.5``, ``params=26500``, ``bytes=1MB``, ``int8-bytes=0.25``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from l0compress.errors import TargetError

UNITS = ("params", "macs", "bytes", "int8_bytes")
SMALLEST_COUNT = 100
_SCALES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([a-zA-Z]*)")


@dataclass(frozen=True)
class Target:
    """A budget: at most ``value`` of ``unit``, as a fraction of the dense model or as an absolute count."""

    unit: str
    value: float | int
    is_fraction: bool

    def __str__(self) -> str:
        """Return the target as written on the command line."""
        return f"{self.unit}={self.value}"

    def limit(self, dense: int) -> int:
        """Return the largest cost allowed, given the dense model's cost in the same unit.

        Example:
            >>> Target("macs", 0.5, True).limit(1001)
            500
        """
        return int(self.value * dense) if self.is_fraction else int(self.value)


def parse_target(text: str) -> Target:
    """Parse a target such as ``macs=0.5`` (a fraction of dense), ``params=26500`` or ``bytes=1.5MB`` (absolute).

    Suffixes k, M and G are decimal; bytes also take B, kB, MB and GB. ``int8-bytes`` means ``int8_bytes``.

    Example:
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
            f"Target {text!r}: {number!r} is no positive number. Write a fraction such as {unit}=0.5, "
            f"or a count such as {unit}=26500 or {unit}=12M."
        )
    digits, suffix = match.groups()
    if unit.endswith("bytes"):
        suffix = suffix.removesuffix("B")
    if suffix.lower() not in _SCALES:
        raise TargetError(f"Target {text!r}: unknown suffix {match[2]!r}. Known are k, M and G.")
    value = float(digits) * _SCALES[suffix.lower()]
    return make_target({unit: value if not suffix and "." in digits else round(value)})


def make_target(target: Mapping[str, float] | str) -> Target:
    """Check a target given as ``{unit: number}``: a float in (0, 1) is a fraction, an integer is a count.

    Text is parsed as on the command line.

    Example:
        >>> make_target({"params": 26_500})
        Target(unit='params', value=26500, is_fraction=False)
        >>> make_target("macs=0.5")
        Target(unit='macs', value=0.5, is_fraction=True)

    Raises:
        TargetError: there is not exactly one unit, or the unit or the number is wrong.
    """
    if isinstance(target, str):
        return parse_target(target)
    if not isinstance(target, Mapping):
        raise TargetError(
            f"The target is {target!r}, and has to be a unit with a number. Nothing was changed. Write for example "
            "'macs=0.5'."
        )
    if len(target) != 1:
        raise TargetError(
            f"One target is needed, got {len(target)}: {dict(target)}. Write for example {{'macs': 0.5}}."
        )
    ((unit, value),) = target.items()
    text = f"{unit}={value}"
    _check_unit(unit, text)
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TargetError(
            f"Target {text!r}: {value!r} is {type(value).__name__}, and has to be a number. Nothing was changed. Write "
            f"for example {{{unit!r}: 0.5}}."
        )
    if 0 < value < 1:
        return Target(unit, float(value), True)
    if math.isfinite(value) and value == int(value) and value >= SMALLEST_COUNT:
        return Target(unit, int(value), False)
    raise TargetError(
        f"Target {text!r} is out of range. A fraction of the dense model lies between 0 and 1 (such as {unit}=0.5); "
        f"an absolute count is a whole number of at least {SMALLEST_COUNT} (such as {unit}=26500)."
    )


def _check_unit(unit: str, text: str) -> None:
    if unit not in UNITS:
        raise TargetError(f"Target {text!r}: {unit!r} is no unit to compress to. Supported are {', '.join(UNITS)}.")
