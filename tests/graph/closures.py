"""What a plan leaves, worked out on arrays, against the same worked out component by component on sets."""

from __future__ import annotations

import torch

from l0compress.errors import PlanError
from l0compress.graph import Groups


def by_sets(groups: Groups, keep: list[bool]) -> tuple[list[bool], frozenset[int]] | None:
    """The moves that are left and the lines that are emptied; None where a frozen component would die."""
    removed = [removal for removal, kept in zip(groups.removals, keep, strict=True) if not kept]
    dead, obstacle = groups.components.close({c for removal in removed for c in removal.components})
    if obstacle is not None:
        return None
    left = [kept and not removal.components <= dead for removal, kept in zip(groups.removals, keep, strict=True)]
    return left, groups.lines.emptied(dead)


def check_closure(groups: Groups, keep: list[bool]) -> None:
    expected, given = by_sets(groups, keep), torch.tensor(keep)
    try:
        closed = groups.close(given)
    except PlanError:
        # Either something frozen would die, or the graph cannot lose what is emptied.
        assert expected is None or groups.vanishing.of(expected[1]).obstacle is not None
        return
    assert expected is not None
    assert closed.tolist() == expected[0]
    assert groups.vanishing.of(expected[1]) is groups.fate_of(groups.alive_components(given))
    assert groups.cost_of(given) == groups.cost_of(closed)
