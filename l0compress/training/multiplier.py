"""The Lagrange multiplier of a constraint, which ascends, and the ramp of its target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AscentSettings:
    """Constants of the multiplier's ascent: Adam's rate and decay factors."""

    learning_rate: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


class Multiplier:
    """A Lagrange multiplier ``value >= 0``, raised by Adam while its constraint is violated, 0 as soon as it is met.

    >>> multiplier = Multiplier(AscentSettings(learning_rate=0.05))
    >>> multiplier.ascend_(violation=0.7); round(multiplier.value, 6)
    0.05
    >>> multiplier.ascend_(violation=-0.1); multiplier.value
    0.0
    """

    def __init__(self, settings: AscentSettings) -> None:
        self.settings = settings
        self._restart_()

    def _restart_(self) -> None:
        self.value, self._mean, self._square, self._steps = 0.0, 0.0, 0.0, 0

    def ascend_(self, violation: float) -> None:
        """One step of ascent on ``value * violation``, or a restart where the constraint is met."""
        if violation <= 0:
            self._restart_()
            return
        s = self.settings
        self._steps += 1
        self._mean += (1 - s.beta1) * (violation - self._mean)
        self._square += (1 - s.beta2) * (violation**2 - self._square)
        mean = self._mean / (1 - s.beta1**self._steps)
        square = self._square / (1 - s.beta2**self._steps)
        self.value += s.learning_rate * mean / (math.sqrt(square) + s.epsilon)

    def state_dict(self) -> dict[str, float]:
        """Its whole state as numbers."""
        return {"multiplier": self.value, "mean": self._mean, "square": self._square, "steps": self._steps}

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.value, self._mean = float(values["multiplier"]), float(values["mean"])
        self._square, self._steps = float(values["square"]), int(values["steps"])


def cubic_ramp(start: float, target: float, progress: float) -> float:
    """The target in force after ``progress`` in [0, 1] of the ramp: ``target + (start - target) * (1 - progress)^3``.

    >>> cubic_ramp(100.0, 20.0, 0.0), cubic_ramp(100.0, 20.0, 0.5), cubic_ramp(100.0, 20.0, 1.0)
    (100.0, 30.0, 20.0)
    """
    return target + (start - target) * (1 - min(max(progress, 0.0), 1.0)) ** 3
