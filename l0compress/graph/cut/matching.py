"""Find the moves of a graph again after some of it has been cut, so that their gates can be carried over."""

from __future__ import annotations

import torch
from torch import Tensor

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import Groups, find_groups
from l0compress.graph.labels.values import flattened, varying


def groups_after(plan: KeepPlan, small: CapturedGraph) -> tuple[Groups, Tensor]:
    """The groups of what a plan leaves, under what is left of the floors of its own, and which moves its moves were.

    Returns:
        The groups, and what :func:`match_moves` returns.

    Raises:
        NothingToPruneError: nothing more can be removed.
    """
    smaller = find_groups(small)
    moves = match_moves(plan.groups, plan, smaller)
    return smaller.with_floors(plan.groups.floors.after(moves)), moves


def match_moves(old: Groups, plan: KeepPlan, new: Groups) -> Tensor:
    """Which old move each move of a smaller graph is.

    Args:
        old: groups of the graph before.
        plan: what was cut.
        new: groups of the graph after.

    Returns:
        int64 (new.num_moves,): the old move that each new move is, -1 where there is none.
    """
    before, after, keeps = _located(old), _located(new), plan.parameter_keeps()
    old_of_new: dict[int, int] = {}
    for name, lines in after.items():
        for dim, line in lines.items():
            keep = keeps[name][dim]
            kept = before[name][dim] if keep is None else before[name][dim][keep]
            old_of_new.update(zip(line.tolist(), kept.tolist(), strict=True))
    # Components that no parameter holds have no address; those with one are enough to tell two moves apart.
    addressed = set(old_of_new.values())
    by_members = {
        frozenset(component for component in removal.components if component in addressed): index
        for index, removal in enumerate(old.removals)
        if plan.keep[index]
    }
    matches = [
        by_members.get(frozenset(old_of_new[member] for member in removal.components if member in old_of_new), -1)
        for removal in new.removals
    ]
    return torch.tensor(matches, dtype=torch.long)


def _located(groups: Groups) -> dict[str, dict[int, Tensor]]:
    """The components along each labelled dimension of each parameter."""
    return {
        name: {
            min(varying(plane)): torch.from_numpy(groups.components.of(flattened(plane)).astype("int64"))
            for plane in value.planes
        }
        for name, value in groups.labelled.parameters.items()
    }
