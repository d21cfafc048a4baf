"""How long the dense model teaches the small one."""

from __future__ import annotations

import math
from dataclasses import replace

from l0compress.training.course import Course, Evaluation

_SURE = 2.0


def taught_by(course: Course, last: Evaluation, dense: Evaluation) -> Course:
    """The course of the next epoch: without a teacher that its pupil has surely left behind.

    That is so where labels count hits, and the small model is ahead on the validation part by more than two standard
    errors of the difference. What such a teacher would teach is its mistakes.
    """
    reading = course.objective.reading
    if course.teacher is None or not (reading.labelled and reading.counts_hits):
        return course
    variances = (one.metric * (1 - one.metric) / max(one.num_samples, 1) for one in (last, dense))
    if last.metric - dense.metric <= _SURE * math.sqrt(sum(variances)):
        return course
    return replace(course, teacher=None)
