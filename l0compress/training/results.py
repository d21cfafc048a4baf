"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups.cost import cost, cost_lines
from l0compress.graph.nodes.describe import counted, headed
from l0compress.training.evaluation import Evaluation
from l0compress.training.events import ProgressEvent
from l0compress.training.reading import Reading


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """What a run returns.

    Attributes:
        dense: the graph that went in.
        plan: what stays of it, on the groups of ``dense``.
        folded: the dense-shaped graph with the final weights scattered back; ``masked(folded, plan)`` equals ``small``.
        small: the shrunk graph with the best weights by validation.
        last: the shrunk graph with the weights of the last epoch.
        dense_evaluation: validation result of the dense model.
        best_evaluation: validation result of ``small``, reached ``best_epoch`` epochs after hardening.
        last_evaluation: validation result of ``last``.
        history: the events that closed an epoch, or a phase within one, in order.
        reading: how outputs and targets were read: what the metrics mean.
    """

    dense: CapturedGraph
    plan: KeepPlan
    folded: CapturedGraph
    small: CapturedGraph
    last: CapturedGraph
    dense_evaluation: Evaluation
    best_evaluation: Evaluation
    best_epoch: int
    last_evaluation: Evaluation
    history: tuple[ProgressEvent, ...]
    reading: Reading

    def __repr__(self) -> str:
        before, after = self.dense_evaluation, self.best_evaluation
        scores = f"val {after.metric_name}: {before.metric:.4g} -> {after.metric:.4g}, {self.best_epoch} epochs after"
        lines = [*cost_lines(cost(self.dense), cost(self.small)), f"{scores} hardening"]
        return headed(f"FinetuneResult({counted(len({event.epoch for event in self.history}), 'epoch')})", lines)
