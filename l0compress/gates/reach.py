"""The smallest network that removal can reach: groups lose every move that they can lose together, the worst first."""

from __future__ import annotations

import torch
from torch import Tensor

from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import Groups
from l0compress.graph.groups.resource import Resource


def smallest_keep(groups: Groups, scores: Tensor) -> Tensor:
    """Return bool ``(num_moves,)``: what is left after removing everything removable, lowest score first; closed.

    If groups can vanish one by one but not all together, those with the lowest scores do.
    """
    best, order = _best(groups, scores).tolist(), torch.argsort(scores, stable=True).tolist()
    narrow = KeepPlan.without(groups, [move for move in order if not best[move]])
    vanishing = [groups.groups[group].can_vanish for group in groups.group_of_move.tolist()]
    return KeepPlan.further(narrow, [move for move in order if best[move] and vanishing[move]]).keep


def smallest_cost(resource: Resource) -> int:
    """Return what the smallest model that removal can reach uses of a resource."""
    return resource.cost(smallest_keep(resource.groups, torch.zeros(resource.groups.num_moves)))


def _best(groups: Groups, scores: Tensor) -> Tensor:
    best = torch.zeros(groups.num_moves, dtype=torch.bool)
    for group in groups.groups:
        members = torch.tensor(group.moves)
        best[members[scores[members].argmax()]] = True
    for members, count in groups.floors.sets():
        best[members[scores[members].argsort(descending=True, stable=True)[:count]]] = True
    return best
