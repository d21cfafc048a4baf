"""Latency as a resource: what a decision will take in time, exact in the steps of kernels, or smooth for learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups
from l0compress.graph.groups.groups import Left
from l0compress.graph.groups.live_counts import Terms
from l0compress.graph.groups.resource import Modelled
from l0compress.latency.fit import Coefficients
from l0compress.latency.kernels import Amount, Work
from l0compress.latency.tables import Table

UNIT = "latency"


@dataclass(frozen=True, eq=False)
class TimeModel:
    """The time of one network on one machine, as a function of which of its components are alive.

    Attributes:
        work: what the dense graph does.
        tables: one for each of ``work.operators``.
        coefficients: how these add up.
        measure: nanoseconds of a small graph's file, measured now.
    """

    work: Work
    tables: tuple[Table, ...]
    coefficients: Coefficients
    measure: Callable[[CapturedGraph], float]

    def features(self, alive: Tensor, live: frozenset[str] | None) -> tuple[float, ...]:
        """What :mod:`~l0compress.latency.fit` multiplies its coefficients by, of what is left of the graph."""
        counts = self.work.lines.of(alive.double()).numpy()
        times = [
            table.at([counts[line] for line in placed.lines])
            for placed, table in zip(self.work.operators, self.tables, strict=True)
            if live is None or placed.node in live
        ]
        sums = [
            sum(
                amount.each * float(np.prod(counts[list(amount.lines)]))
                for amount in amounts
                if live is None or amount.node in live
            )
            for amounts in (self.work.elements, self.work.macs)
        ]
        return (1.0, sum(times), float(sum(time > 0 for time in times)), *sums)

    def exact(self, alive: Tensor, live: frozenset[str] | None) -> int:
        """Nanoseconds of what is left, with the steps of the kernels."""
        return round(float(np.dot(self.features(alive, live), self.coefficients.values)))

    def terms(self) -> Terms:
        """Nanoseconds as a sum of products of widths: smooth, for what learns."""
        found = self.coefficients
        amounts = [Amount("", found.fixed, ())]
        for placed, table in zip(self.work.operators, self.tables, strict=True):
            for axes, each in table.smooth.items():
                lines = tuple(placed.lines[axis] for axis in axes)
                of_one = 0.0 if axes else found.per_operator
                amounts.append(Amount(placed.node, max(0.0, found.scale * each + of_one), lines))
        amounts += [replace(a, each=a.each * found.per_element) for a in self.work.elements]
        amounts += [replace(a, each=a.each * found.per_mac) for a in self.work.macs]
        return self.work.lines.terms([(a.each, a.lines, frozenset({a.node})) for a in amounts if a.each > 0])


@dataclass(frozen=True, eq=False)
class Latency(Modelled):
    """Time as a resource of a network, in nanoseconds.

    Attributes:
        model: of the dense network.
    """

    model: TimeModel

    @classmethod
    def of_model(cls, groups: Groups, model: TimeModel) -> Latency:
        """The latency of the dense network of ``groups``, which ``model`` was fitted to."""
        everything = torch.ones(groups.num_moves, dtype=torch.bool)
        return cls(groups, UNIT, groups, model.terms(), everything, torch.arange(groups.num_moves), model)

    @property
    def is_estimate(self) -> bool:
        """A model of time is near the truth; the truth is what :meth:`used_by` measures."""
        return True

    def exact(self, dense: Left) -> int:
        return self.model.exact(dense.alive, dense.fate.live)

    def counts(self, alive: Tensor) -> Tensor:
        return self.model.work.lines.of(alive)

    def used_by(self, small: CapturedGraph, keep: Tensor, *, sparse: bool = False) -> int:
        del keep, sparse
        return round(self.model.measure(small))
