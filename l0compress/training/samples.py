"""The few samples that a decision without training looks at, and that small graphs are repaired on."""

from __future__ import annotations

from l0compress.data.batches import Batch
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups.cost import cost
from l0compress.training.narrowing import Refine
from l0compress.training.problem import Problem
from l0compress.training.randomness import undisturbed
from l0compress.training.repair import repair

MOST_SAMPLES = 512
FEWEST_SAMPLES = 64
# A forward and a backward pass through all samples takes at most about so many multiply-accumulates, some tens of
# seconds of one core.
MOST_MACS = 1.5e12
_REPAIR_BATCH = 32
# Some batches are solved on and others checked on.
_FEWEST_REPAIR_BATCHES = 4


def num_samples_for(graph: CapturedGraph) -> int:
    """How many samples a network is scored on: fewer the more one costs.

    >>> from torch import nn, zeros
    >>> from l0compress.graph.capture import capture
    >>> num_samples_for(capture(nn.Linear(4, 2), (zeros(2, 4),)))
    512
    """
    affordable = int(MOST_MACS / (3 * max(cost(graph).macs, 1)))
    return min(MOST_SAMPLES, max(FEWEST_SAMPLES, affordable))


def take_samples(problem: Problem, count: int, *, batch_size: int) -> tuple[Batch, ...]:
    """Samples of the training part, not augmented, in batches of ``batch_size`` at most; the same for the same seed.

    Neither the global random state nor that of the data's own generators changes.
    """
    taken: list[Batch] = []
    with undisturbed(problem.data.train):
        left = count
        for batch in problem.data.train.batches(batch_size, seed=problem.settings.seed):
            kept = min(len(batch), left)
            for start in range(0, kept, batch_size):
                piece = batch.rows(slice(start, min(start + batch_size, kept)))
                taken.append(piece.to(problem.device))
            left -= kept
            if left == 0:
                break
    return tuple(taken)


def repair_on_samples(problem: Problem) -> Refine:
    """A repair of small graphs against the activations of the dense one: layers solved anew by least squares.

    Where there are too few samples to check on others what was solved on some, small graphs stay as they are.
    """
    dense = problem.graph
    count = min(num_samples_for(dense), len(problem.data.train))
    batches = take_samples(problem, count, batch_size=min(_REPAIR_BATCH, max(1, count // _FEWEST_REPAIR_BATCHES)))

    def repaired(plan: KeepPlan, small: CapturedGraph) -> CapturedGraph:
        if len(batches) < _FEWEST_REPAIR_BATCHES:
            return small
        return repair(small, dense, plan, batches, device=problem.device).graph

    return repaired
