"""What a network can be reduced to: every group keeps its best move and loses the others."""

from __future__ import annotations

import torch
from torch import Tensor

from l0compress.graph.groups import Groups
from l0compress.graph.plan import KeepPlan


def best_moves(groups: Groups, scores: Tensor) -> Tensor:
    """bool ``(num_moves,)``: True for the move of highest score in each group, which must stay.

    ``scores`` is a float tensor of shape ``(num_moves,)``; of equal scores the first wins.
    """
    best = torch.zeros(groups.num_moves, dtype=torch.bool)
    for group in groups.groups:
        members = torch.tensor(group.moves)
        best[members[scores[members].argmax()]] = True
    return best


def smallest_keep(groups: Groups, scores: Tensor) -> Tensor:
    """bool ``(num_moves,)``: what is left when everything is removed that can be, lowest score first; closed."""
    best = best_moves(groups, scores)
    drop = [move for move in torch.argsort(scores, stable=True).tolist() if not best[move]]
    return KeepPlan.without(groups, drop).keep


def smallest_cost(groups: Groups, unit: str) -> int:
    """The cost, in ``unit``, of the smallest model that removal can reach."""
    return groups.cost_of(smallest_keep(groups, torch.zeros(groups.num_moves))).get(unit)
