"""Axes of small drawings: round numbers at even distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low, high: the values at its ends.
        start, end: where its ends are in the drawing.
        ticks: the values that are written.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return where a value is in the drawing.

        >>> Axis(0, 10, 100, 0, ()).at(2.5)
        75.0
        """
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def marks(self) -> tuple[tuple[float, str], ...]:
        """Where each tick is, and what is written there."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        digits += not math.isclose(step * 10**digits, round(step * 10**digits), abs_tol=1e-6)
        return tuple((self.at(tick), f"{tick:,.{digits}f}") for tick in self.ticks)


def axis_over(low: float, high: float, *, ends: tuple[float, float], most: int = 5, whole: bool = False) -> Axis:
    """Return an axis that covers the values between two, with at most so many ticks between round numbers.

    Args:
        low, high: the smallest and the largest value.
        ends: where the axis starts and ends in the drawing.
        most: intervals between ticks.
        whole: ticks are integers.

    Example:
        >>> axis_over(0.973, 0.998, ends=(0, 1)).ticks
        (0.97, 0.975, 0.98, 0.985, 0.99, 0.995, 1.0)
        >>> [text for _, text in axis_over(0, 48, ends=(0, 1), whole=True).marks]
        ['0', '10', '20', '30', '40', '50']
    """
    if not high > low:
        pad = abs(low) * 0.05 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(part * power for part in _STEPS if part * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(number * step, 12) for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], *ends, ticks)
