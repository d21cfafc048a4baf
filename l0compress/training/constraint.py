"""One target of a budget as a constraint: its resource, how far it is from being met, and its own multiplier."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from l0compress.gates.attach import GatedNetwork
from l0compress.graph.groups.resource import Resource
from l0compress.training.multiplier import Multiplier, cubic_ramp
from l0compress.training.targets import AbsoluteTarget


class Constraint:
    """Holds what a gated network uses of one resource to a target.

    Attributes:
        resource: as a function of the moves of the gated network as it is now.
        dense: what the network of the target uses with nothing removed.
        target: the most that hardening may leave.
        target_now: the target in force at this step of the ramp, in the same unit.
    """

    def __init__(self, gated: GatedNetwork, resource: Resource, target: AbsoluteTarget, multiplier: Multiplier) -> None:
        self._gated, self.resource = gated, resource
        self.dense, self.target = target.dense, target.limit
        self.target_now = float(target.limit)
        self._multiplier = multiplier
        self._last: float | None = None

    @property
    def unit(self) -> str:
        """What is measured."""
        return self.resource.unit

    @property
    def multiplier(self) -> float:
        """The Lagrange multiplier: what a unit of log cost weighs in the loss."""
        return self._multiplier.value

    @property
    def density(self) -> float:
        """Expected cost after removal over the dense cost."""
        with torch.no_grad():
            return float(self.expected_cost()) / self.dense

    def expected_cost(self) -> Tensor:
        """Expected cost after removal, a scalar in the constraint's unit, differentiable in the gates."""
        return self._gated.expected_cost(self.resource)

    @property
    def violation(self) -> float:
        """``log E[cost] - log target_now``; feasible where <= 0."""
        with torch.no_grad():
            return float(self._violation())

    def penalty(self) -> Tensor:
        """The multiplier times the violation, which the next :meth:`step_` ascends on."""
        violation = self._violation()
        self._last = float(violation.detach())
        return self.multiplier * violation

    def _violation(self) -> Tensor:
        return self.expected_cost().log() - math.log(self.target_now)

    def step_(self) -> None:
        """Ascend on the multiplier by the violation of the last :meth:`penalty`."""
        self._multiplier.ascend_(self.violation if self._last is None else self._last)
        self._last = None

    def move_target_(self, progress: float) -> None:
        """Put the target where it is after a share of its ramp."""
        self.target_now = cubic_ramp(self.dense, self.target, progress)

    def follow_(self, gated: GatedNetwork, kept_moves: Tensor) -> None:
        """Go on with what compaction made of the network.

        Args:
            kept_moves: int64: the move that each one of ``gated`` was; none of the others stayed.
        """
        keep = torch.zeros(self.resource.groups.num_moves, dtype=torch.bool)
        keep[kept_moves] = True
        self._gated, self.resource = gated, self.resource.after(gated.groups, keep, kept_moves)
        self._last = None

    def report(self) -> dict[str, float]:
        """How far it is."""
        return {"density": self.density, "violation": self.violation, "multiplier": self.multiplier}

    def state_dict(self) -> dict[str, float]:
        """What has to be known between two steps to go on, beside the ramp's position."""
        return self._multiplier.state_dict()

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._multiplier.load_state_dict(values)
        self._last = None
