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
from numbers import Real
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from l0compress.errors import InputError, TargetError
from l0compress.gates.attach import GatedNetwork, check_gated
from l0compress.training.goals import Criterion
from l0compress.training.multiplier import AscentSettings, FixedMultiplier, Multiplier, cubic_ramp
from l0compress.training.targets import (
    AbsoluteTarget,
    Target,
    check_countable,
    check_reachable,
    dense_cost,
    named_target,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ASCENT = AscentSettings()


class Penalty(ABC):
    """What joins the loss while gates are trained: ``multiplier`` times an amount that the gates decide.

    A :class:`Budget` or a :class:`FixedPenalty`.

    Attributes:
        unit: ``params``, ``macs``, ``bytes`` or ``int8_bytes``.
        dense: the cost, in that unit, with nothing removed.
        target: the most that hardening may leave; None where there is no target.
    """

    unit: str
    dense: int
    target: int | None = None

    def __init__(self, gated: GatedNetwork, unit: str, dense: int, multiplier: Multiplier | FixedMultiplier) -> None:
        self._gated = gated
        self.unit = unit
        self.dense = dense
        self._multiplier = multiplier

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
                "the gated network is in evaluation mode, where gates are not sampled and learn nothing from the loss.",
                fix="Call gated.train() before training steps, and gated.eval() only to evaluate.",
            )
        return self.multiplier * self._amount()

    @property
    def multiplier(self) -> float:
        """What a unit of the amount weighs in the loss: of a budget the Lagrange multiplier, a unit of log cost."""
        return self._multiplier.value

    @abstractmethod
    def _amount(self) -> Tensor:
        """What the multiplier is multiplied with: a scalar, differentiable in the gates."""

    @property
    def violation(self) -> float:
        """Feasible where <= 0; 0 without a target, where nothing is violated."""
        return 0.0

    def step(self) -> None:
        """Called once after every step of the optimizer: the multiplier ascends by the violation."""
        self._multiplier.ascend_(self.violation)

    def follow_(self, gated: GatedNetwork) -> None:
        """Go on with ``gated``, what compaction made of the network so far; target and multiplier stay."""
        self._gated = gated

    def values(self) -> dict[str, float]:
        """What has to be known between two steps to go on."""
        return self._multiplier.values()

    def load_values_(self, values: Mapping[str, float]) -> None:
        """Go on from what :meth:`values` returned."""
        self._multiplier.load_values_(values)


class Units(TypedDict, total=False):
    """The keywords that name a target, an older spelling of ``{"macs": 0.5}``; ``size_bytes`` is ``bytes``."""

    params: float | None
    macs: float | None
    bytes: float | None
    size_bytes: float | None
    int8_bytes: float | None


class Budget(Penalty):
    """Holds the expected cost of ``gated`` after removal to a target in parameters, MACs, bytes or bytes of int8.

    ``target`` names exactly one of ``params``, ``macs``, ``bytes`` and ``int8_bytes``, which counts what the int8 file
    will hold, see :mod:`l0compress.graph.groups.int8`: as a mapping, ``Budget(gated, {"macs": 0.5})``, or as on the
    command line, ``Budget(gated, "macs=0.5")``. The older ``Budget(gated, macs=0.5)`` works as well. A number between 0
    and 1 is a fraction of the cost that ``gated`` has when the budget is made, an integer from 100 on is a count. Where
    single weights carry gates, the cost is that of what is not zero, see :func:`~l0compress.nonzero_cost`.
    ``ramp_steps`` is the number of calls of :meth:`step` over which the target falls from the model's own cost to the
    budget.

    In a training loop::

        loss = task_loss(gated(x), y) + budget.penalty()
        loss.backward()
        optimizer.step()
        budget.step()

    >>> from l0compress import capture, gate
    >>> gated = gate(capture(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), (torch.zeros(2, 4),)))
    >>> budget = Budget(gated, {"macs": 0.5})
    >>> budget.dense, budget.target
    (48, 24)

    Raises TargetError for a malformed target, and for one that no choice of what to remove can reach; InputError where
    ``gated`` is no gated network.
    """

    target: int

    def __init__(
        self,
        gated: GatedNetwork,
        target: Target | AbsoluteTarget | Mapping[str, float] | str | None = None,
        *,
        ramp_steps: int = 0,
        ascent: AscentSettings = _ASCENT,
        **units: Unpack[Units],
    ) -> None:
        check_gated(gated, "Budget")
        if not isinstance(target, AbsoluteTarget):
            wanted = named_target(target, units)
            target = wanted.on(dense_cost(gated.groups, wanted.unit))
        check_countable(target.unit, single_weights=bool(gated.sparse))
        check_reachable(target, gated.groups, gated.smallest_cost)
        self._begin_(gated, target, ramp_steps, ascent)

    @classmethod
    def at(cls, gated: GatedNetwork, target: AbsoluteTarget, *, ascent: AscentSettings = _ASCENT) -> Budget:
        """A budget on ``gated``, what is left of the network of ``target``, in force from the first step.

        The target was found to be within reach of that network, and is not checked again.
        """
        budget = cls.__new__(cls)
        budget._begin_(gated, target, 0, ascent)
        return budget

    def _begin_(self, gated: GatedNetwork, target: AbsoluteTarget, ramp_steps: int, ascent: AscentSettings) -> None:
        super().__init__(gated, target.unit, target.dense, Multiplier(ascent))
        self.target = target.limit
        self.ramp_steps = ramp_steps
        self._num_steps = 0
        self._last: float | None = None

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

    def _amount(self) -> Tensor:
        """The violation, which the next :meth:`step` ascends on."""
        violation = self._violation()
        self._last = float(violation.detach())
        return violation

    def _violation(self) -> Tensor:
        return self.expected_cost().log() - math.log(self.target_now)

    def step(self) -> None:
        """Ascend on the multiplier by the violation of the last :meth:`penalty`, and move the target along its ramp."""
        self._multiplier.ascend_(self.violation if self._last is None else self._last)
        self._last = None
        self._num_steps += 1

    def follow_(self, gated: GatedNetwork) -> None:
        super().follow_(gated)
        self._last = None

    def values(self) -> dict[str, float]:
        """The ramp's position and the multiplier's state."""
        return {"num_steps": self._num_steps, **super().values()}

    def load_values_(self, values: Mapping[str, float]) -> None:
        super().load_values_(values)
        self._num_steps = int(values["num_steps"])
        self._last = None

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

    Raises TargetError for a multiplier that is negative or not finite, InputError where ``gated`` is no gated network.
    """

    def __init__(self, gated: GatedNetwork, multiplier: float, *, unit: str = "params") -> None:
        check_gated(gated, "FixedPenalty")
        if not (isinstance(multiplier, Real) and multiplier >= 0 and math.isfinite(multiplier)):
            raise TargetError(f"Penalty {multiplier}: a multiplier is a finite number, 0 or more.", fix="")
        super().__init__(gated, unit, dense_cost(gated.groups, unit), FixedMultiplier(multiplier))

    @classmethod
    def aic(cls, gated: GatedNetwork, num_samples: int) -> FixedPenalty:
        """Akaike 1974: one nat a parameter, ``multiplier = 1 / N``."""
        return cls(gated, Criterion("aic").multiplier(num_samples))

    @classmethod
    def bic(cls, gated: GatedNetwork, num_samples: int) -> FixedPenalty:
        """Schwarz 1978: half of ``ln N`` nats a parameter, ``multiplier = ln N / (2 N)``."""
        return cls(gated, Criterion("bic").multiplier(num_samples))

    def _amount(self) -> Tensor:
        return self.expected_cost()

    def __repr__(self) -> str:
        return f"FixedPenalty({self.multiplier:.4g} for each of {self.unit}; expected now {self.density:.1%})"
