"""What a target stands for: an absolute number in a unit, checked against what a network can be reduced to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from l0compress.errors import TargetError
from l0compress.gates.reach import smallest_cost
from l0compress.graph.groups import Groups
from l0compress.graph.groups.cost import UNITS
from l0compress.loading import Target, make_target, parse_target

PENALTIES = ("penalty", "aic", "bic")
_SYNONYMS = {"size_bytes": "bytes"}
UNIT_NAMES = {"params": "parameters", "macs": "MACs", "bytes": "bytes", "int8_bytes": "bytes of int8"}


def dense_cost(groups: Groups, unit: str) -> int:
    """The cost, in ``unit``, with nothing removed."""
    return groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)).get(unit)


def reachable_target(groups: Groups, wanted: float, unit: str, *, smallest: Callable[[str], int] | None = None) -> int:
    """The absolute target that ``wanted`` stands for; see :func:`resolve_target`.

    ``smallest`` returns the cost, in a unit, of the smallest model that can be reached; by default by removing channels
    alone.

    Raises:
        TargetError: it is malformed, or below the smallest model that removal can reach; the message names that one's
            share.
    """
    dense = dense_cost(groups, unit)
    target = resolve_target(wanted, dense, unit)
    least = smallest_cost(groups, unit) if smallest is None else smallest(unit)
    if least > target:
        share = least / dense
        raise TargetError(
            f"Target {unit}={wanted}: at most {target:,} {UNIT_NAMES[unit]} cannot be reached. With everything "
            f"removed that can be removed, {least:,} of {dense:,} stay ({share:.4f}). Nothing was changed. Ask for "
            f"{unit}={math.ceil(share * 1000 + 1) / 1000} or more."
        )
    return target


def resolve_target(wanted: float, dense: int, unit: str) -> int:
    """An absolute target from a fraction of ``dense`` (between 0 and 1) or from a count (a whole number from 100 on).

    >>> resolve_target(0.25, 1000, "macs"), resolve_target(400, 1000, "macs")
    (250, 400)

    Raises:
        TargetError: what the command line refuses, see :func:`~l0compress.loading.targets.make_target`; or a count
            that the model does not exceed.
    """
    target = make_target({unit: wanted})
    if not target.is_fraction and target.value >= dense:
        raise TargetError(
            f"Target {unit}={wanted}: the model already has only {dense:,} {UNIT_NAMES[unit]}, so there is "
            f"nothing to remove. Nothing was changed. Ask for fewer than {dense}, or for a fraction such as "
            f"{unit}=0.5."
        )
    return target.limit(dense)


def check_countable(unit: str, *, single_weights: bool) -> None:
    """Refuse a unit in which what is to be removed costs nothing.

    >>> check_countable("int8_bytes", single_weights=False)

    Raises:
        TargetError: the bytes of an int8 file, where single weights become zero.
    """
    if unit == "int8_bytes" and single_weights:
        raise TargetError(
            "Target int8_bytes: an int8 file stores a zero as it stores any other weight, so it does not shrink with "
            "single weights. Nothing was changed. Say --granularity structured, or name params, macs or bytes."
        )


def the_one(target: Mapping[str, float | None] | str, *, names: str) -> tuple[str, float]:
    """The one unit that ``target`` gives a number for, and the number; ``names`` says what may be given.

    >>> the_one({"params": None, "macs": 0.5}, names="params and macs"), the_one("bytes=1MB", names="bytes")
    (('macs', 0.5), ('bytes', 1000000))

    Raises:
        TargetError: none or several are given, or text cannot be read.
    """
    if isinstance(target, str):
        return _read(target)
    given = {unit: value for unit, value in target.items() if value is not None}
    if len(given) != 1:
        raise TargetError(
            f"A target names exactly one of {names}; given: {' and '.join(given) or 'none'}. Nothing was changed. "
            "Example: macs=0.5."
        )
    return next(iter(given.items()))


def the_budget(target: Mapping[str, float | None] | str) -> tuple[str, float]:
    """The unit and the number of a target that is no penalty.

    >>> the_budget({"macs": 0.5}), the_budget("params=26500")
    (('macs', 0.5), ('params', 26500))

    Raises:
        TargetError: as :func:`the_one`; or it is no budget.
    """
    unit, value = the_one(target, names="params, macs, bytes and int8_bytes")
    if unit not in UNITS:
        raise TargetError(
            f"Target {unit!r} is no budget, and a score needs one: params, macs, bytes or int8_bytes. Nothing was "
            "changed. Example: macs=0.5; or let gates be learned, by method l0."
        )
    return unit, value


def _read(text: str) -> tuple[str, float]:
    """As on the command line; of a fixed penalty the number as it is.

    >>> _read("penalty=1e-6"), _read("macs=12M")
    (('penalty', 1e-06), ('macs', 12000000))
    """
    unit, _, number = (piece.strip() for piece in text.partition("="))
    if unit in PENALTIES:
        try:
            return unit, float(number)
        except ValueError as reason:
            raise TargetError(
                f"Target {text!r}: {number!r} is no number. Nothing was changed. Write for example {unit}=1."
            ) from reason
    target = parse_target(text)
    return target.unit, target.value


def named_target(target: Mapping[str, float] | str | None, units: Mapping[str, Any]) -> Target:
    """The one target that a mapping or text and keywords name together; ``size_bytes`` is another word for ``bytes``.

    >>> named_target({"macs": 0.5}, {}) == named_target("macs=0.5", {}) == named_target(None, {"macs": 0.5})
    True
    >>> named_target(None, {"size_bytes": 4096, "macs": None})
    Target(unit='bytes', value=4096, is_fraction=False)

    Raises:
        TargetError: none or several are given, or unit or number are wrong.
    """
    if target is not None and not isinstance(target, Mapping):
        parsed = make_target(target)
        target = {parsed.unit: parsed.value}
    given = [(unit, value) for unit, value in (*(target or {}).items(), *units.items()) if value is not None]
    if len(given) != 1:
        shown = " and ".join(str(unit) for unit, _ in given)
        raise TargetError(
            f"A target names exactly one of params, macs, bytes and int8_bytes; given: {shown or 'none'}. Nothing was "
            "changed. Example: macs=0.5."
        )
    ((unit, value),) = given
    return make_target({_SYNONYMS.get(unit, unit): value})
