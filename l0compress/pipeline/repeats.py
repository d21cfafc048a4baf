"""Repeated layers as one: groups whose names differ in positions alone, and that are alike in everything else."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import prod

from l0compress.graph.groups import Group

_POSITION = re.compile(r"(?<![^.])\d+(?![^. ])")  # a number that is a whole part of a dotted name


def repeated(groups: Iterable[Group]) -> list[tuple[str, tuple[Group, ...]]]:
    """Groups that are alike but for their position, under one name each, in the order of their first members.

    Alike is: the same name around the positions, the same kind, as many moves, the same cost and the same fate.

    Examples:
        >>> alike = [Group(f"layers.{i}.up", "channels", (i,), 10, 20, ()) for i in range(3)]
        >>> [(name, len(members)) for name, members in repeated(alike)]
        [('layers.{0..2}.up', 3)]
    """
    alike: defaultdict[tuple[object, ...], list[Group]] = defaultdict(list)
    for group in groups:
        template = _POSITION.sub("*", group.name)
        key = (template, group.kind, len(group.moves), group.params, group.macs, group.can_vanish, len(group.where))
        alike[key].append(group)
    rows = [row for members in alike.values() for row in _rows(members)]
    return sorted(rows, key=lambda row: row[1][0].moves[0])


def _rows(members: Sequence[Group]) -> list[tuple[str, tuple[Group, ...]]]:
    """One row where the positions are all combinations of some values; else one for each of all but the last."""
    positions = [tuple(int(found) for found in _POSITION.findall(group.name)) for group in members]
    values = [sorted(set(column)) for column in zip(*positions, strict=True)]
    if len(set(positions)) == len(members) == prod(len(column) for column in values):
        return [(_name(members[0].name, values), tuple(members))]
    split: defaultdict[tuple[int, ...], list[Group]] = defaultdict(list)
    for position, group in zip(positions, members, strict=True):
        split[position[:-1]].append(group)
    if len(split) == 1:
        return [(group.name, (group,)) for group in members]
    return [row for part in split.values() for row in _rows(part)]


def _name(name: str, values: Sequence[Sequence[int]]) -> str:
    texts = iter(values)
    return _POSITION.sub(lambda _: _ranges(next(texts)), name)


def _ranges(values: Sequence[int]) -> str:
    """Sorted numbers in braces, runs of three and more shortened; a single one as it is."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return "{" + ",".join(texts) + "}"
