"""What makes up for a cut without training: layers solved anew by least squares, on a few hundred samples."""

from __future__ import annotations

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.training.course import Course
from l0compress.training.descent import Repair
from l0compress.training.repair import repair
from l0compress.training.samples import num_samples_for, take_samples

BATCH = 32
# Some batches are solved on and others checked on.
_FEWEST_BATCHES = 4


def mender(course: Course, dense: CapturedGraph) -> Repair:
    """A repair of small graphs against the activations of ``dense``, on samples of the training part.

    Where there are too few samples to check on others what was solved on some, small graphs stay as they are.
    """
    count = min(num_samples_for(dense), len(course.data.train))
    batches = take_samples(course, count, batch_size=min(BATCH, max(1, count // _FEWEST_BATCHES)))
    device = course.settings.device

    def mend(plan: KeepPlan, small: CapturedGraph) -> CapturedGraph:
        if len(batches) < _FEWEST_BATCHES:
            return small
        return repair(small, dense, plan, batches, device=device).graph

    return mend
