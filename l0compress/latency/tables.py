"""Tables of measured times: between and beyond grid points, with the steps that kernels have.

requires: times of an operator along each of its widths, and on a coarse grid of all of them together.
ensures:  a time for any widths, which never falls where a width grows.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import nnls

# Floats of a vector register on the widest processors: kernels pay for whole ones.
VECTOR = 16
_FINE, _COARSE = 12, 3

Measure = Callable[[tuple[int, ...]], float]


def axis_grid(width: int, unit: int, most: int = _FINE) -> tuple[int, ...]:
    """The widths to measure up to ``width``: whole vectors, at most about ``most`` of them, and the width itself.

    >>> axis_grid(64, 1), axis_grid(12 * 32, 32, 4), axis_grid(5, 1)
    ((16, 32, 48, 64), (32, 96, 192, 288, 384), (1, 5))
    """
    step = max(VECTOR, unit)
    if width <= step:
        return (unit, width) if unit < width else (width,)
    stride = step * max(1, round(width / step / most))
    return tuple(sorted({*range(stride, width, stride), width} | ({step} if stride > step else set())))


@dataclass(frozen=True, eq=False)
class Table:
    """The time of an operator as a function of its widths, in nanoseconds.

    Attributes:
        grids: increasing widths along each axis, the last one the largest.
        times: at each combination of them; none is less than one of smaller widths.
        unit: how many of a width come and go together.
    """

    grids: tuple[tuple[int, ...], ...]
    times: NDArray[np.float64]
    unit: int

    @classmethod
    def measured(cls, widths: Sequence[int], unit: int, measure: Measure) -> Table:
        """The table of what ``measure`` returns, up to ``widths``.

        Measured is each axis with the other widths at their largest, and a coarse grid of all widths. Between these
        the time is what the axes make of it, times what the coarse grid corrects that by. Where a smaller width took
        longer, as noise and odd kernels have it, the larger one counts as long.

        >>> table = Table.measured((64, 32), 1, lambda widths: 5.0 + widths[0] * widths[1])
        >>> table.at((64, 32)), round(table.at((32, 16))), table.at((0, 16))
        (2053.0, 517, 0.0)
        """
        widths = tuple(widths)
        grids = tuple(axis_grid(width, unit) for width in widths)
        along = [
            np.array([measure((*widths[:place], point, *widths[place + 1 :])) for point in grid])
            for place, grid in enumerate(grids)
        ]
        times = _product(along)
        if len(widths) > 1:
            coarse = tuple(axis_grid(width, unit, _COARSE) for width in widths)
            found = np.array([measure(point) for point in itertools.product(*coarse)])
            corners = found.reshape([len(grid) for grid in coarse])
            points = np.stack(np.meshgrid(*coarse, indexing="ij"), -1)
            times = times * _interpolated(coarse, corners / _interpolated(grids, times, points), _meshed(grids))
        for axis in range(len(widths)):
            times = np.maximum.accumulate(times, axis)
        return cls(grids, times, unit)

    @property
    def widths(self) -> tuple[int, ...]:
        """The largest width along each axis."""
        return tuple(grid[-1] for grid in self.grids)

    def at(self, widths: Sequence[float]) -> float:
        """The time at these widths; 0 where one of them is 0. Short of a whole vector it takes as long as the whole.

        >>> steps = Table(((16, 32, 64),), np.array([10.0, 10.0, 30.0]), 1)
        >>> [steps.at((width,)) for width in (0, 17, 48, 49, 64)]
        [0.0, 10.0, 20.0, 30.0, 30.0]
        """
        if min(widths, default=1) <= 0:
            return 0.0
        step = max(VECTOR, self.unit)
        times = self.times
        for grid, width in zip(self.grids, widths, strict=True):
            whole = max(grid[0], min(grid[-1], -(-int(width) // step) * step))
            right = bisect.bisect_left(grid, whole)
            if grid[right] == whole:
                times = times[right]
                continue
            share = (whole - grid[right - 1]) / (grid[right] - grid[right - 1])
            times = (1 - share) * times[right - 1] + share * times[right]
        return float(times)

    @cached_property
    def smooth(self) -> dict[tuple[int, ...], float]:
        """Coefficients of products of widths, by which axes are in each, all 0 or more: the table without its steps.

        A width that no kernel rewards has no slope anywhere in the table; between whole vectors nothing has. Learning
        needs to know in which direction time falls at all, so it goes by the surface that fits the table best in
        relative terms.
        """
        places = range(len(self.grids))
        monomials = [m for size in range(len(self.grids) + 1) for m in itertools.combinations(places, size)]
        points = _meshed(self.grids).reshape(-1, len(self.grids))
        features = np.stack([points[:, list(m)].prod(1) for m in monomials], 1).astype(np.float64)
        times, scale = np.maximum(self.times.ravel(), 1.0), features.max(0)
        found, _ = nnls(features / scale / times[:, None], np.ones(len(points)))
        return {m: float(c / s) for m, c, s in zip(monomials, found, scale, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"grids": self.grids, "times": self.times.tolist(), "unit": self.unit}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Table:
        """The table that :meth:`to_json` wrote.

        >>> table = Table.measured((64, 32), 1, lambda widths: 5.0 + widths[0] * widths[1])
        >>> Table.from_json(table.to_json()).at((48, 16)) == table.at((48, 16))
        True
        """
        return cls(tuple(tuple(grid) for grid in stored["grids"]), np.array(stored["times"]), stored["unit"])


def _product(along: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """What each axis makes of the largest time, multiplied."""
    result = along[0]
    for times in along[1:]:
        result = result[..., None] * (times / max(times[-1], 1e-9))
    return result


def _meshed(grids: tuple[tuple[int, ...], ...]) -> NDArray[np.int64]:
    return np.stack(np.meshgrid(*grids, indexing="ij"), -1)


def _interpolated(grids: tuple[tuple[int, ...], ...], values: NDArray[np.float64], points: Any) -> NDArray[np.float64]:
    """Linear interpolation on a grid at points (..., axes), constant beyond its edges."""
    inside = np.stack([np.clip(points[..., place], grid[0], grid[-1]) for place, grid in enumerate(grids)], -1)
    kept = [place for place, grid in enumerate(grids) if len(grid) > 1]
    if not kept:
        return np.full(points.shape[:-1], values.ravel()[0])
    squeezed = values.reshape([len(grids[place]) for place in kept])
    return RegularGridInterpolator([grids[place] for place in kept], squeezed)(inside[..., kept])
