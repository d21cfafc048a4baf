"""What makes a network sparse while it is trained: a penalty, a projection, or masks that are renewed.

requires: a network whose reads carry :class:`~l0compress.training.methods.factors.Factors`, or whose weights carry
          masks, and the limits that a decision on it has to keep to.
ensures:  scores to decide by at the end. All state is in the network, and in :meth:`Pressure.state_dict`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from l0compress.gates.attach import GatedNetwork
from l0compress.training.events import densities_told
from l0compress.training.limits import Limits
from l0compress.training.multiplier import cubic_ramp
from l0compress.training.problem import Problem
from l0compress.training.state_dicts import StateDict

# What the scores of moves are called among all scores.
MOVES = "moves"
# How often in its ramp the budget of the moment is rounded to.
RENEWALS = 32


@dataclass(frozen=True, eq=False)
class Pressed:
    """What a pressure works on.

    Attributes:
        network: what is trained, with factors on moves or masks on weights where the method has any.
        limits: what the decision has to keep to, on the network's groups.
        problem: the run's.
    """

    network: GatedNetwork
    limits: Limits
    problem: Problem

    @property
    def ramp_share(self) -> float:
        """The part of the phase in which the bounds in force fall to the limits."""
        return self.problem.settings.gates.ramp_share

    @cached_property
    def dense(self) -> tuple[int, ...]:
        """What the whole network uses of each resource."""
        return self.limits.dense()

    def most_at(self, progress: float) -> tuple[int, ...]:
        """The bounds in force after a share of the phase: they fall from the dense cost to the limits, cubically."""
        along = progress / self.ramp_share if self.ramp_share else 1.0
        pairs = zip(self.dense, self.limits.most, strict=True)
        return tuple(round(cubic_ramp(dense, most, along)) for dense, most in pairs)

    def share_at(self, progress: float) -> float:
        """The same as a share of the dense cost: that of the limit which leaves least."""
        return min(now / dense for now, dense in zip(self.most_at(progress), self.dense, strict=True))

    def is_due(self, progress: float) -> bool:
        """Whether the bounds are renewed at a step that leaves ``progress`` done: RENEWALS times while they fall."""
        steps = max(self.problem.gated_steps, 1)
        every = max(1, round(steps * self.ramp_share / RENEWALS))
        return round(progress * steps) % every == 0

    def density_at(self, progress: float) -> dict[str, Any]:
        """The fields of an event that say which share of the dense cost is in force."""
        units = [bound.resource.unit for bound in self.limits.bounds]
        shares = [now / dense for now, dense in zip(self.most_at(progress), self.dense, strict=True)]
        return densities_told(dict(zip(units, shares, strict=True)))


class Pressure(ABC):
    """What a method does to a network beside training its weights."""

    def __init__(self, pressed: Pressed) -> None:
        self.pressed = pressed

    @property
    def network(self) -> GatedNetwork:
        return self.pressed.network

    def learned(self) -> dict[str, nn.Parameter]:
        """What is learned beside the weights, by the names that states use; nothing unless a method says so."""
        return {}

    def regularized(self, loss: Tensor) -> Tensor:
        """The loss of a batch with what is minimised beside it."""
        return loss

    def before_step_(self) -> None:
        """Called with the gradients of a batch in place, before the optimizers use and clear them."""
        return

    @abstractmethod
    def step_(self, progress: float) -> None:
        """Called after every step of the optimizers; ``progress`` is the share of the phase that is done then."""

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """What to decide by, the highest stay: of moves under ``MOVES``, of single weights by their names."""

    def report(self, progress: float) -> dict[str, Any]:
        """The fields of a progress event."""
        return self.pressed.density_at(progress)

    def state_dict(self) -> StateDict:
        """What is known besides the network and what is :meth:`learned`."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        del state_dict
