"""From the times of single operators to that of the whole file.

A network takes longer than its kernels: values are written and read between them, shapes are computed, threads meet.
What a sample takes is therefore fitted as

    fixed + scale * (operators by their tables) + per_operator * (how many of them are left)
          + per_element * (elements written) + per_mac * (other MACs)

on whole files of several widths, each measured. Errors count in relative terms. An operator may take less than its
table says, since the profiler that timed it took some microseconds itself; all else can only add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import Groups
from l0compress.latency.tables import VECTOR

# Even widths of every layer, and two mixtures: what is decided later is seldom even.
DENSITIES = (1.0, 0.7, 0.45, 0.25)
MIXTURES = 2
_SEED = 0
# What the profiler takes of an operator's time at most, and how far tables may be off.
PROFILER_NS, LEAST_SCALE, MOST_SCALE = 12_000.0, 0.5, 2.0


@dataclass(frozen=True)
class Coefficients:
    """What :mod:`l0compress.latency.fit` fits, in nanoseconds. ``error`` is the largest relative one on what it saw."""

    fixed: float
    scale: float
    per_operator: float
    per_element: float
    per_mac: float
    error: float = 0.0

    @classmethod
    def of_tables(cls) -> Coefficients:
        """What holds before anything is fitted: the sum of the tables."""
        return cls(fixed=0.0, scale=1.0, per_operator=0.0, per_element=0.0, per_mac=0.0)

    @property
    def values(self) -> NDArray[np.float64]:
        """The coefficients, in order."""
        return np.array([self.fixed, self.scale, self.per_operator, self.per_element, self.per_mac])


def fitted(features: Sequence[Sequence[float]], measured: Sequence[float]) -> Coefficients:
    """The coefficients under which ``features``, rows in the order of the fields, give what was ``measured``.

    >>> rows = [(1.0, 10.0, 0.0, 0.0, 0.0), (1.0, 20.0, 0.0, 0.0, 0.0), (1.0, 40.0, 0.0, 0.0, 0.0)]
    >>> found = fitted(rows, [25.0, 45.0, 85.0])
    >>> round(found.fixed, 2), round(found.scale, 3), found.per_element, round(found.error, 4)
    (5.0, 2.0, 0.0, 0.0)
    """
    rows, times = np.array(features, dtype=np.float64), np.array(measured, dtype=np.float64)
    used = rows.max(0) > 0
    size = np.where(used, rows.max(0), 1.0)
    lowest = np.array([0.0, LEAST_SCALE, -PROFILER_NS, 0.0, 0.0]) * size
    highest = np.array([np.inf, MOST_SCALE, np.inf, np.inf, np.inf]) * size
    highest[~used] = np.maximum(lowest[~used], 0) + 1e-9
    found = lsq_linear(rows / size / times[:, None], np.ones(len(times)), bounds=(lowest, highest))
    values = np.where(used, found.x / size, 0.0)
    errors = np.abs(rows @ values / times - 1)
    return Coefficients(*(float(value) for value in values), error=float(errors.max()))


def trial_plans(groups: Groups) -> list[KeepPlan]:
    """The plans whose files are measured, the dense one first. They are the same ones each time."""
    even = [plan_of_densities(groups, [density] * len(groups.groups)) for density in DENSITIES]
    draws = torch.Generator().manual_seed(_SEED)
    mixed = []
    for number in range(MIXTURES):
        level = (number + 1) / (MIXTURES + 1)
        spread = torch.rand(len(groups.groups), generator=draws).tolist()
        mixed.append(plan_of_densities(groups, [level * (0.5 + share) for share in spread]))
    return even + mixed


def plan_of_densities(groups: Groups, densities: Sequence[float]) -> KeepPlan:
    """A plan that keeps that share of each group: whole vectors of channels, at least one."""
    drop: list[int] = []
    for group, density in zip(groups.groups, densities, strict=True):
        size = len(group.moves)
        step = VECTOR if size > VECTOR else 1
        kept = min(size, max(step, round(min(density, 1.0) * size / step) * step))
        drop += list(group.moves)[kept:]
    return KeepPlan.without(groups, drop)
