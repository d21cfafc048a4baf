"""A pressure that holds a norm down by a constraint: what all kinds of the lasso have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from l0compress.training.methods.pressure import Pressed, Pressure
from l0compress.training.multiplier import AscentSettings, Multiplier
from l0compress.training.state_dicts import StateDict

_SMALLEST = 1e-6


class NormPressure(Pressure):
    """``min L  subject to  norm <= share * norm at the start``: the lasso as a constraint, as it was first written.

    A fixed weight of a norm does nothing or empties the network. Here it is a Lagrange multiplier, as a budget's is,
    which rises while the norm is above its target. That falls cubically from what the norm is at first to the share
    of it that the tightest limit leaves of the dense cost. Source: Tibshirani, "Regression Shrinkage and Selection via
    the Lasso", 1996, equation 1.
    """

    def __init__(self, pressed: Pressed) -> None:
        super().__init__(pressed)
        rate = pressed.problem.settings.gates.multiplier_rate_for(max(pressed.problem.gated_steps, 1))
        self._multiplier = Multiplier(AscentSettings(learning_rate=rate))
        self._target_now = self._share = 1.0
        self._start = max(float(self.norm().detach()), _SMALLEST)

    @abstractmethod
    def norm(self) -> Tensor:
        """What is held down: a scalar, differentiable."""

    def regularized(self, loss: Tensor) -> Tensor:
        share = self.norm() / self._start
        self._share = float(share.detach())
        return loss + self._multiplier.value * share.clamp_min(_SMALLEST).log()

    def step_(self, progress: float) -> None:
        self._multiplier.ascend_(self._violation())
        self._target_now = max(self.pressed.share_at(progress), _SMALLEST)

    def _violation(self) -> float:
        """``log norm - log target``, of the norm that was last looked at."""
        return math.log(max(self._share, _SMALLEST) / self._target_now)

    def report(self, progress: float) -> dict[str, Any]:
        del progress
        return {"density": self._share, "violation": self._violation(), "multiplier": self._multiplier.value}

    def state_dict(self) -> StateDict:
        return {"norm": {"share": self._share, "target": self._target_now, **self._multiplier.state_dict()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        values = state_dict["norm"]
        self._share, self._target_now = float(values["share"]), float(values["target"])
        self._multiplier.load_state_dict(values)
