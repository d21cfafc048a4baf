"""What joins the loss while gates are trained, whatever it is: the face of budgets, and penalties that stay fixed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from l0compress.errors import InputError, TargetError
from l0compress.gates.attach import GatedNetwork, check_gated
from l0compress.graph.groups import Groups
from l0compress.graph.groups.resource import Counted, Resource
from l0compress.training.goals import Criterion
from l0compress.training.limits import Limits


class Penalty(ABC):
    """What joins the loss while gates are trained: an amount that the gates decide, times a multiplier.

    A :class:`Budget` or a :class:`FixedPenalty`.
    """

    def __init__(self, gated: GatedNetwork) -> None:
        self._gated = gated

    @property
    def gated(self) -> GatedNetwork:
        """The network whose cost this is on."""
        return self._gated

    def penalty(self) -> Tensor:
        """What to add to the loss: a scalar, differentiable in the gates.

        Raises:
            InputError: gradients are wanted while the gates are in evaluation mode, where they are not sampled.
        """
        modules = self._gated.gate_modules()
        if torch.is_grad_enabled() and not any(module.training for module in modules):
            raise InputError(
                "the gated network is in evaluation mode, where gates are not sampled and learn nothing from the loss.",
                fix="Call gated.train() before training steps, and gated.eval() only to evaluate.",
            )
        return self._amount()

    @abstractmethod
    def _amount(self) -> Tensor:
        """The penalty, a scalar, differentiable in the gates."""

    @property
    @abstractmethod
    def units(self) -> tuple[str, ...]:
        """What is measured."""

    @property
    def resources(self) -> tuple[Resource, ...]:
        """What is measured, as a function of the moves of :attr:`gated`."""
        return tuple(Counted(self._gated.groups, unit) for unit in self.units)

    def limits_on(self, groups: Groups) -> Limits | None:
        """The most that hardening may leave of ``groups``, those of :attr:`gated` or equal ones; None where any may."""
        del groups
        return None

    @property
    def violation(self) -> float:
        """Feasible where <= 0; 0 without a target, where nothing is violated."""
        return 0.0

    @abstractmethod
    def step(self) -> None:
        """Called once after every step of the optimizer."""

    def follow_(self, gated: GatedNetwork, kept_moves: Tensor) -> None:
        """Go on with ``gated``, what compaction made of the network; ``kept_moves`` says which moves its moves were."""
        del kept_moves
        self._gated = gated

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """The fields of a progress event that say how far training has come."""

    @abstractmethod
    def state_dict(self) -> dict[str, float]:
        """What has to be known between two steps to go on."""

    @abstractmethod
    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Go on from what :meth:`state_dict` returned."""


class FixedPenalty(Penalty):
    """``multiplier * E[cost]`` with a multiplier that the caller chose: the penalty of Louizos et al. 2018, equation 9.

    With ``unit="params"`` and a loss that is a mean negative log-likelihood, :meth:`aic` and :meth:`bic` are the
    expected Akaike and Bayesian information criteria divided by twice the number of samples.
    There is no target: hardening keeps what is kept with probability above one half.

    Attributes:
        unit: ``params``, ``macs``, ``bytes`` or ``int8_bytes``.
        dense: the cost, in that unit, with nothing removed.
        multiplier: what a unit of cost weighs in the loss.
        target: None; there is none.

    Raises TargetError for a multiplier that is negative or not finite, InputError where ``gated`` is no gated network.
    """

    target: None = None

    def __init__(self, gated: GatedNetwork, multiplier: float, *, unit: str = "params") -> None:
        check_gated(gated, "FixedPenalty")
        if not (isinstance(multiplier, Real) and multiplier >= 0 and math.isfinite(multiplier)):
            raise TargetError(f"Penalty {multiplier}: a multiplier is a finite number, 0 or more.", fix="")
        super().__init__(gated)
        self.unit, self.multiplier = unit, float(multiplier)
        self.dense = Counted(gated.groups, unit).dense

    @classmethod
    def aic(cls, gated: GatedNetwork, num_samples: int) -> FixedPenalty:
        """Akaike 1974: one nat a parameter, ``multiplier = 1 / N``."""
        return cls(gated, Criterion("aic").multiplier(num_samples))

    @classmethod
    def bic(cls, gated: GatedNetwork, num_samples: int) -> FixedPenalty:
        """Schwarz 1978: half of ``ln N`` nats a parameter, ``multiplier = ln N / (2 N)``."""
        return cls(gated, Criterion("bic").multiplier(num_samples))

    @property
    def units(self) -> tuple[str, ...]:
        return (self.unit,)

    @property
    def density(self) -> float:
        """Expected cost after removal over the dense cost."""
        with torch.no_grad():
            return float(self.expected_cost()) / self.dense

    def expected_cost(self) -> Tensor:
        """Expected cost after removal, a scalar in the penalty's unit, differentiable in the gates."""
        return self._gated.expected_cost(self.unit)

    def _amount(self) -> Tensor:
        return self.multiplier * self.expected_cost()

    def step(self) -> None:
        """Nothing moves: the multiplier stays what it is."""

    def report(self) -> dict[str, Any]:
        return {"density": self.density, "violation": 0.0, "multiplier": self.multiplier}

    def state_dict(self) -> dict[str, float]:
        """Nothing: it has no state."""
        return {}

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Nothing to load."""

    def __repr__(self) -> str:
        return f"FixedPenalty({self.multiplier:.4g} for each of {self.unit}; expected now {self.density:.1%})"
