"""What a method decides: what stays of the dense graph, and the small graph that this leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan, unshrink_state
from l0compress.graph.cut.shrink import shrink


@dataclass(frozen=True, eq=False)
class Decision:
    """Attributes:
    plan: what stays.
    small: what ``shrink`` makes of the plan's graph, with the weights that go with the decision.
    repaired: these weights make up for what was cut, so that statistics of batch norms are not measured anew.
    """

    plan: KeepPlan
    small: CapturedGraph
    repaired: bool = False

    @classmethod
    def of(cls, plan: KeepPlan, state: Mapping[str, Tensor] | None = None, *, repaired: bool = False) -> Decision:
        """The decision with a small model's weights by name, or with those of the plan's own graph.

        ``state`` may come from a network that was cut in several steps, whose nodes have other names.
        """
        dense = plan.groups.graph
        return cls(
            plan, shrink(dense if state is None else dense.with_state(unshrink_state(plan, state)), plan), repaired
        )

    @property
    def folded(self) -> CapturedGraph:
        """The dense-shaped graph with the small one's weights; dead places keep the dense weights."""
        return self.plan.groups.graph.with_state(unshrink_state(self.plan, self.small.state()))
