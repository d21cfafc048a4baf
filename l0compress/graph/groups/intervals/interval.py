"""An interval, and the arithmetic of bounds: rounded outward by what float32 may be off.

Bounds are sums of the largest that each term can be. A rounded sum never falls where a term rises, whatever the order
of its terms, so that what float32 makes of a sum is off by no more than what it makes of these largest terms.

Source: Moore, "Interval Analysis", 1966, chapter 3.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# Twice the unit roundoff of float32.
EPS = 2.0**-23
# Roundings on the way to a value that is computed from few, or by adding up pairwise.
ROUNDINGS = 64


@dataclass(frozen=True, eq=False)
class Interval:
    """Attributes:
    low, high: float64, of shapes that broadcast against the value; no element of it is below the one or above the
        other.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, low: float, high: float) -> Interval:
        """The same bounds everywhere."""
        return cls(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))

    def with_rank(self, rank: int) -> Interval:
        """The bounds with leading dimensions of size 1 up to so many in all."""
        low, high = (bound.reshape((1,) * (rank - bound.dim()) + bound.shape) for bound in (self.low, self.high))
        return Interval(low, high)

    def hull(self, other: Interval) -> Interval:
        """The least interval around both."""
        return Interval(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    def over(self, dims: Sequence[int]) -> Interval:
        """The least interval around all that lie along ``dims``."""
        if not dims:
            return self
        return Interval(self.low.amin(list(dims), keepdim=True), self.high.amax(list(dims), keepdim=True))

    def along(self, dim: int, shape: Sequence[int]) -> Interval:
        """For a value of ``shape``, the bounds of each index along one dimension, as vectors."""
        rank, kept = len(shape), dim % len(shape)
        whole = self.with_rank(rank).over([other for other in range(rank) if other != kept])
        return Interval(*(bound.flatten().expand(shape[kept]) for bound in (whole.low, whole.high)))

    @property
    def is_zero(self) -> Tensor:
        """bool: where the value cannot be anything but zero."""
        low, high = torch.broadcast_tensors(self.low, self.high)
        return (low == 0) & (high == 0)


class Operands(Protocol):
    """What is known of the operands of a node."""

    def of(self, operand: Any) -> Interval:
        """The interval of an operand: a number, a weight or a node."""
        ...

    def weight(self, operand: Any) -> Tensor | None:
        """A floating parameter or buffer, in float64."""
        ...


ZERO, ANYTHING = Interval.of(0.0, 0.0), Interval.of(-math.inf, math.inf)


def times(factor: Tensor, bound: Tensor) -> Tensor:
    """The product, where zero times infinity is zero: a value is finite, only its bound is not."""
    return torch.where((factor == 0) | (bound == 0), 0.0, factor * bound)


def widened(low: Tensor, high: Tensor, operations: int = 1) -> Interval:
    """Bounds of a value that takes so many roundings, each relative to it; a zero stays one."""
    return Interval(low - operations * EPS * low.abs(), high + operations * EPS * high.abs())


def sum_of(*bounds: Tensor) -> Tensor:
    """The most that a sum can be: relative to its terms, and not above zero where the exact one is not."""
    exact, size = functools.reduce(operator.add, bounds), functools.reduce(operator.add, map(torch.abs, bounds))
    return torch.where(exact <= 0, (exact + 2 * EPS * size).clamp(max=0), exact + 2 * EPS * size)


def scaled(factor: Tensor, x: Interval) -> Interval:
    """A multiple: a factor below zero turns the bounds round."""
    one, other = times(factor, x.low), times(factor, x.high)
    return Interval(torch.minimum(one, other), torch.maximum(one, other))


def shifted(factor: Tensor, x: Interval, *shifts: Tensor) -> Interval:
    """``factor * x`` and further terms, in whatever order they are computed; exact where the factor is zero."""
    ends, shift = scaled(factor, x), functools.reduce(operator.add, shifts)
    size = functools.reduce(operator.add, map(torch.abs, shifts))
    sizes = (end.abs() + size for end in (ends.low, ends.high))
    low, high = (ROUNDINGS * EPS * times((factor != 0).double(), each) for each in sizes)
    return Interval(ends.low + shift - low, ends.high + shift + high)
