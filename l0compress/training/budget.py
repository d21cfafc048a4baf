"""A budget as a constraint: minimise the loss subject to ``cost <= target``.

A fixed penalty on the expected cost is badly conditioned: nothing is removed until its weight is large enough, and then
everything is. :class:`Budget` instead descends on weights and gates and ascends on a Lagrange multiplier of

    violation = log E[cost of the model after removal] - log target_now        (<= 0 is feasible)

The multiplier grows while the budget is violated and restarts at 0 once it is met, as in Gallego-Posada et al.,
"Controlled Sparsity via Constrained Optimization or: How I Learned to Stop Tuning Penalties and Love Constraints",
NeurIPS 2022, section 3.3. The target starts at the model's own cost and falls cubically (Zhu and Gupta, "To prune, or
not to prune", 2017, equation 1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from l0compress.errors import InputError, TargetError
from l0compress.gates.attach import GatedNetwork, check_gated
from l0compress.training.multiplier import AscentSettings, Multiplier, cubic_ramp
from l0compress.training.targets import check_countable, dense_cost, named_target, reachable_target

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ASCENT = AscentSettings()


class Penalty(ABC):
    """What joins the loss while gates are trained: a :class:`Budget` or a :class:`FixedPenalty`.

    Attributes:
        unit: ``params``, ``macs``, ``bytes`` or ``int8_bytes``.
        dense: the cost, in that unit, with nothing removed.
        target: the most that hardening may leave; None where there is no target.
    """

    unit: str
    dense: int
    target: int | None

    def __init__(self, gated: GatedNetwork, unit: str) -> None:
        self._gated = gated
        self.unit = unit
        self.dense = dense_cost(gated.groups, unit)

    @property
    def gated(self) -> GatedNetwork:
        """The network whose cost this is on."""
        return self._gated

    @property
    def density(self) -> float:
        """Expected cost after removal over the dense cost."""
        with torch.no_grad():
            return float(self.expected_cost()) / self.dense

    def expected_cost(self) -> Tensor:
        """Expected cost after removal, a scalar in the penalty's unit, differentiable in the gates."""
        return self._gated.expected_cost(self.unit)

    def penalty(self) -> Tensor:
        """What to add to the loss: a scalar, differentiable in the gates.

        Raises:
            InputError: gradients are wanted while the gates are in evaluation mode, where they are not sampled.
        """
        modules = self._gated.gate_modules()
        if torch.is_grad_enabled() and not any(module.training for module in modules):
            raise InputError(
                "the gated network is in evaluation mode, where gates are not sampled and learn nothing from the loss. "
                "Nothing was changed. Call gated.train() before the steps of training, and gated.eval() only to "
                "evaluate."
            )
        return self._penalty()

    def follow_(self, gated: GatedNetwork) -> None:
        """Go on with ``gated``, what compaction made of the network so far."""
        self._gated = gated

    @property
    @abstractmethod
    def multiplier(self) -> float:
        """What a unit of the penalty weighs in the loss."""

    @property
    @abstractmethod
    def violation(self) -> float:
        """Feasible where <= 0."""

    @abstractmethod
    def _penalty(self) -> Tensor: ...

    @abstractmethod
    def step(self) -> None:
        """Called once after every step of the optimizer."""

    @abstractmethod
    def values(self) -> dict[str, float]:
        """What has to be known between two steps to go on."""

    @abstractmethod
    def load_values_(self, values: Mapping[str, float]) -> None:
        """Go on from what :meth:`values` returned."""


class Units(TypedDict, total=False):
    """The keywords that name a target."""

    params: float | None
    macs: float | None
    bytes: float | None
    size_bytes: float | None
    int8_bytes: float | None


class Budget(Penalty):
    """Holds the expected cost of ``gated`` after removal to a target in parameters, MACs, bytes or bytes of int8.

    Name exactly one of ``params``, ``macs``, ``bytes`` (or ``size_bytes``) and ``int8_bytes``, which counts what the
    int8 file will hold, see :mod:`l0compress.graph.groups.int8`: as a keyword, in a mapping,
    ``Budget(gated, {"macs": 0.5})``, or as on the command line, ``Budget(gated, "macs=0.5")``. A number between 0 and 1
    is a fraction of the cost that ``gated`` has when the budget is made, a whole number from 100 on is a count. Where
    single weights carry gates, the cost is that of what is not zero, see :func:`~l0compress.nonzero_cost`.
    ``ramp_steps`` is the number of calls of :meth:`step` over which the target falls from the model's own cost to the
    budget.

    In a training loop::

        loss = task_loss(gated(x), y) + budget.penalty()
        loss.backward()
        optimizer.step()
        budget.step()

    Raises TargetError for a malformed target, and for one that no choice of what to remove can reach; InputError where
    ``gated`` is no gated network.
    """

    target: int

    def __init__(
        self,
        gated: GatedNetwork,
        target: Mapping[str, float] | str | None = None,
        *,
        ramp_steps: int = 0,
        ascent: AscentSettings = _ASCENT,
        **units: Unpack[Units],
    ) -> None:
        check_gated(gated, "Budget")
        wanted = named_target(target, units)
        check_countable(wanted.unit, single_weights=bool(gated.sparse))
        super().__init__(gated, wanted.unit)
        least = gated.smallest_cost
        self._begin_(reachable_target(gated.groups, wanted.value, wanted.unit, smallest=least), ramp_steps, ascent)

    @classmethod
    def at(cls, gated: GatedNetwork, unit: str, target: int, *, dense: int, ascent: AscentSettings = _ASCENT) -> Budget:
        """A budget on what is left of a larger network of cost ``dense``, in force from the first step.

        ``target`` is a count that was found to be within reach, however small.
        """
        budget = cls.__new__(cls)
        Penalty.__init__(budget, gated, unit)
        budget.dense = dense
        budget._begin_(target, 0, ascent)
        return budget

    def _begin_(self, target: int, ramp_steps: int, ascent: AscentSettings) -> None:
        self.target = target
        self.ramp_steps = ramp_steps
        self._multiplier = Multiplier(ascent)
        self._num_steps = 0
        self._last: float | None = None

    @property
    def multiplier(self) -> float:
        """The Lagrange multiplier in force, in units of loss per unit of log cost."""
        return self._multiplier.value

    @property
    def target_now(self) -> float:
        """The target in force at this step of the ramp, in the budget's unit."""
        if self.ramp_steps <= 0:
            return float(self.target)
        return cubic_ramp(self.dense, self.target, self._num_steps / self.ramp_steps)

    @property
    def violation(self) -> float:
        """``log E[cost] - log target_now``; feasible where <= 0."""
        with torch.no_grad():
            return float(self._violation())

    def _penalty(self) -> Tensor:
        """``multiplier * violation``."""
        violation = self._violation()
        self._last = float(violation.detach())
        return self.multiplier * violation

    def step(self) -> None:
        """Ascend on the multiplier by the violation of the last :meth:`penalty`, and move the target along its ramp."""
        self._multiplier.ascend_(self.violation if self._last is None else self._last)
        self._last = None
        self._num_steps += 1

    def follow_(self, gated: GatedNetwork) -> None:
        """Go on with ``gated``, what compaction made of the network so far; target and multiplier stay."""
        super().follow_(gated)
        self._last = None

    def values(self) -> dict[str, float]:
        """What has to be known between two steps to go on: the ramp's position and the multiplier's state."""
        return {"num_steps": self._num_steps, **self._multiplier.values()}

    def load_values_(self, values: Mapping[str, float]) -> None:
        """Go on from what :meth:`values` returned."""
        self._num_steps = int(values["num_steps"])
        self._multiplier.load_values_(values)
        self._last = None

    def _violation(self) -> Tensor:
        return self.expected_cost().log() - math.log(self.target_now)

    def __repr__(self) -> str:
        ramp = f" of {self.ramp_steps:,} of its ramp" if self.ramp_steps > 0 else ""
        return (
            f"Budget({self.unit}: at most {self.target:,} of {self.dense:,}; expected now {self.density:.1%}, "
            f"multiplier {self.multiplier:.4g}, step {self._num_steps:,}{ramp})"
        )


class FixedPenalty(Penalty):
    """``multiplier * E[cost]`` with a multiplier that the caller chose: the penalty of Louizos et al. 2018, equation 9.

    With ``unit="params"`` and a loss that is a mean negative log-likelihood, :meth:`aic` and :meth:`bic` are the
    expected Akaike and Bayesian information criteria divided by twice the number of samples.
    There is no target: hardening keeps what is kept with probability above one half.
    """

    target: None = None

    def __init__(self, gated: GatedNetwork, multiplier: float, *, unit: str = "params") -> None:
        check_gated(gated, "FixedPenalty")
        if not (multiplier >= 0 and math.isfinite(multiplier)):
            raise TargetError(f"Penalty {multiplier}: a multiplier is a finite number, 0 or more. Nothing was changed.")
        super().__init__(gated, unit)
        self._multiplier = float(multiplier)

    @classmethod
    def aic(cls, gated: GatedNetwork, num_samples: int) -> FixedPenalty:
        """Akaike 1974: one nat a parameter, ``multiplier = 1 / N``."""
        return cls(gated, 1 / num_samples)

    @classmethod
    def bic(cls, gated: GatedNetwork, num_samples: int) -> FixedPenalty:
        """Schwarz 1978: half of ``ln N`` nats a parameter, ``multiplier = ln N / (2 N)``."""
        return cls(gated, math.log(num_samples) / (2 * num_samples))

    @property
    def multiplier(self) -> float:
        """Loss per unit of cost."""
        return self._multiplier

    @property
    def violation(self) -> float:
        """Always 0: without a target nothing is violated."""
        return 0.0

    def _penalty(self) -> Tensor:
        """``multiplier * E[cost]``."""
        return self.multiplier * self.expected_cost()

    def step(self) -> None:
        """Nothing moves: the multiplier is fixed."""

    def values(self) -> dict[str, float]:
        """Nothing: a fixed penalty has no state."""
        return {}

    def load_values_(self, values: Mapping[str, float]) -> None:
        """Nothing to load."""

    def __repr__(self) -> str:
        return f"FixedPenalty({self.multiplier:.4g} for each of {self.unit}; expected now {self.density:.1%})"
