"""A network on its way down: cut several times, with every decision kept as one on the dense graph's moves.

requires: the groups of a dense graph.
ensures:  ``graph`` is what ``shrink`` makes of the dense graph by ``plan``, whatever its weights; further cuts are
          made on ``groups``, the small graph's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.errors import NothingToPruneError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.matching import groups_after
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups, groups_without_moves
from l0compress.training.decision import Decision
from l0compress.training.limits import Limits

Refine = Callable[[KeepPlan, CapturedGraph], CapturedGraph]


def _as_it_is(plan: KeepPlan, small: CapturedGraph) -> CapturedGraph:
    del plan
    return small


@dataclass(frozen=True, eq=False)
class Narrowed:
    """Attributes:
    plan: everything that was decided, on the dense graph's groups.
    graph: what is left.
    groups: what can be cut from it.
    moves: int64 (groups.num_moves,): the dense move that each is, -1 where there is none.
    """

    plan: KeepPlan
    graph: CapturedGraph
    groups: Groups
    moves: Tensor

    @classmethod
    def whole(cls, groups: Groups) -> Narrowed:
        """The dense network, before any cut."""
        return cls(KeepPlan.everything(groups), groups.graph, groups, torch.arange(groups.num_moves))

    @classmethod
    def of(cls, decision: Decision) -> Narrowed:
        """What is left of the dense network after all of a decision is carried out in one cut."""
        return cls(decision.plan, decision.small, *_groups_after(decision.plan, decision.small))

    def cut(self, plan: KeepPlan, refine: Refine = _as_it_is) -> Narrowed:
        """The network after ``plan``, one on :attr:`groups`, is carried out too.

        Args:
            refine: gives the small graph other weights; it is called with all that was decided and with that graph.

        Raises:
            PlanError: the plan is on other groups.
        """
        whole = self.lifted(plan)
        small = refine(whole, shrink(self.graph, plan))
        groups, found = _groups_after(plan, small)
        moves = torch.where(found < 0, -1, self.moves[found.clamp(min=0)])
        return Narrowed(whole, small, groups, moves)

    def limits(self, limits: Limits) -> Limits:
        """Limits on the dense network as limits on :attr:`groups`."""
        if self.groups is limits.groups:
            return limits
        return limits.after(self.groups, self.plan.keep, self.moves)

    def lifted(self, plan: KeepPlan) -> KeepPlan:
        """``plan``, one on :attr:`groups`, together with all that was decided before, on the dense graph's groups."""
        keep = self.plan.keep.clone()
        dropped = self.moves[~plan.keep]
        keep[dropped[dropped >= 0]] = False
        return KeepPlan.from_keep(self.plan.groups, keep)

    def settled(self, scores: Tensor) -> Tensor:
        """``scores`` with what is no move of the dense graph made the last to go."""
        return scores.masked_fill(self.moves < 0, torch.inf)


def _groups_after(plan: KeepPlan, small: CapturedGraph) -> tuple[Groups, Tensor]:
    try:
        return groups_after(plan, small)
    except NothingToPruneError:
        return groups_without_moves(small), torch.zeros(0, dtype=torch.long)
