"""The few samples that a decision without training looks at."""

from __future__ import annotations

from l0compress.data.batches import Batch
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.cost import cost
from l0compress.training.course import Course
from l0compress.training.randomness import undisturbed

MOST_SAMPLES = 512
FEWEST_SAMPLES = 64
# A forward and a backward pass through all samples takes at most about so many multiply-accumulates, some tens of
# seconds of one core.
MOST_MACS = 1.5e12


def num_samples_for(graph: CapturedGraph) -> int:
    """How many samples a network is scored on: fewer the more one costs.

    >>> from torch import nn, zeros
    >>> from l0compress.graph.capture import capture
    >>> num_samples_for(capture(nn.Linear(4, 2), (zeros(2, 4),)))
    512
    """
    affordable = int(MOST_MACS / (3 * max(cost(graph).macs, 1)))
    return min(MOST_SAMPLES, max(FEWEST_SAMPLES, affordable))


def take_samples(course: Course, count: int, *, batch_size: int) -> tuple[Batch, ...]:
    """Samples of the training part, not augmented, in batches of ``batch_size`` at most; the same for the same seed.

    Neither the global random state nor that of the data's own generators changes.
    """
    taken: list[Batch] = []
    with undisturbed(course.data.train):
        left = count
        for batch in course.data.train.batches(batch_size, seed=course.settings.seed):
            kept = min(len(batch), left)
            for start in range(0, kept, batch_size):
                piece = batch.rows(slice(start, min(start + batch_size, kept)))
                taken.append(piece.to(course.settings.device))
            left -= kept
            if left == 0:
                break
    return tuple(taken)
