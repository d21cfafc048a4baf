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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from l0compress.errors import TargetError
from l0compress.gates.reach import smallest_cost
from l0compress.graph.groups import Groups

if TYPE_CHECKING:
    from l0compress.gates.attach import GatedNetwork

_UNIT_NAMES = {"params": "parameters", "macs": "MACs", "bytes": "bytes"}


class Penalty(Protocol):
    """What joins the loss while gates are trained: a :class:`Budget` or a :class:`FixedPenalty`."""

    @property
    def unit(self) -> str: ...

    @property
    def target(self) -> int | None: ...

    @property
    def multiplier(self) -> float: ...

    @property
    def violation(self) -> float: ...

    @property
    def density(self) -> float: ...

    def penalty(self) -> Tensor: ...

    def step(self) -> None: ...

    def follow_(self, gated: GatedNetwork) -> None: ...


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


def cubic_ramp(start: float, target: float, progress: float) -> float:
    """The target in force after ``progress`` in [0, 1] of the ramp: ``target + (start - target) * (1 - progress)^3``.

    >>> cubic_ramp(100.0, 20.0, 0.0), cubic_ramp(100.0, 20.0, 0.5), cubic_ramp(100.0, 20.0, 1.0)
    (100.0, 30.0, 20.0)
    """
    return target + (start - target) * (1 - min(max(progress, 0.0), 1.0)) ** 3


class Budget:
    """Holds the expected cost of ``gated`` after removal to a target in parameters, MACs or bytes.

    Name exactly one of ``params``, ``macs`` and ``size_bytes``: a float between 0 and 1 is a fraction of the cost that
    ``gated`` has when the budget is made, an int is an absolute number. ``ramp_steps`` is the number of calls of
    :meth:`step` over which the target falls from the model's own cost to the budget.

    In a training loop::

        loss = task_loss(gated(x), y) + budget.penalty()
        loss.backward()
        optimizer.step()
        budget.step()

    Raises TargetError for a malformed target, and for one that no choice of what to remove can reach.
    """

    def __init__(
        self,
        gated: GatedNetwork,
        *,
        params: float | None = None,
        macs: float | None = None,
        size_bytes: float | None = None,
        ramp_steps: int = 0,
        ascent: AscentSettings = AscentSettings(),
    ) -> None:
        self.unit, wanted = _the_one({"params": params, "macs": macs, "bytes": size_bytes})
        self.dense: int = dense_cost(gated.groups, self.unit)
        self.target: int = reachable_target(gated.groups, wanted, self.unit)
        self.ramp_steps = ramp_steps
        self._gated = gated
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

    @property
    def density(self) -> float:
        """Expected cost after removal over the dense cost."""
        with torch.no_grad():
            return float(self.expected_cost()) / self.dense

    def expected_cost(self) -> Tensor:
        """Expected cost after removal, a scalar in the budget's unit, differentiable in the gates."""
        return self._gated.groups.expected_cost(self._gated.gates.probability_nonzero(), self.unit)

    def penalty(self) -> Tensor:
        """``multiplier * violation``: add it to the loss. Scalar, differentiable in the gates."""
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
        self._gated = gated
        self._last = None

    def _violation(self) -> Tensor:
        return self.expected_cost().log() - math.log(self.target_now)


class FixedPenalty:
    """``multiplier * E[cost]`` with a multiplier that the caller chose: the penalty of Louizos et al. 2018, equation 9.

    With ``unit="params"`` and a loss that is a mean negative log-likelihood, :meth:`aic` and :meth:`bic` are the
    expected Akaike and Bayesian information criteria divided by twice the number of samples.
    There is no target: hardening keeps what is kept with probability above one half.
    """

    target: int | None = None

    def __init__(self, gated: GatedNetwork, multiplier: float, *, unit: str = "params") -> None:
        if not (multiplier >= 0 and math.isfinite(multiplier)):
            raise TargetError(f"Penalty {multiplier}: a multiplier is a finite number, 0 or more. Nothing was changed.")
        self.unit = unit
        self.multiplier = float(multiplier)
        self.dense: int = dense_cost(gated.groups, unit)
        self._gated = gated

    @classmethod
    def aic(cls, gated: GatedNetwork, num_samples: int) -> FixedPenalty:
        """Akaike 1974: one nat a parameter, ``multiplier = 1 / N``."""
        return cls(gated, 1 / num_samples)

    @classmethod
    def bic(cls, gated: GatedNetwork, num_samples: int) -> FixedPenalty:
        """Schwarz 1978: half of ``ln N`` nats a parameter, ``multiplier = ln N / (2 N)``."""
        return cls(gated, math.log(num_samples) / (2 * num_samples))

    @property
    def violation(self) -> float:
        """Always 0: without a target nothing is violated."""
        return 0.0

    @property
    def density(self) -> float:
        """Expected cost after removal over the dense cost."""
        with torch.no_grad():
            return float(self.expected_cost()) / self.dense

    def expected_cost(self) -> Tensor:
        """Expected cost after removal, a scalar in the penalty's unit, differentiable in the gates."""
        return self._gated.groups.expected_cost(self._gated.gates.probability_nonzero(), self.unit)

    def penalty(self) -> Tensor:
        """``multiplier * E[cost]``: add it to the loss. Scalar, differentiable in the gates."""
        return self.multiplier * self.expected_cost()

    def step(self) -> None:
        """Nothing moves: the multiplier is fixed."""

    def follow_(self, gated: GatedNetwork) -> None:
        """Go on with ``gated``, what compaction made of the network so far."""
        self._gated = gated


def dense_cost(groups: Groups, unit: str) -> int:
    """The cost, in ``unit``, with nothing removed."""
    return groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)).get(unit)


def reachable_target(groups: Groups, wanted: float, unit: str) -> int:
    """The absolute target that ``wanted`` stands for; see :func:`resolve_target`.

    Raises:
        TargetError: it is malformed, or below the smallest model that removal can reach; the message names that one's
            share.
    """
    dense = dense_cost(groups, unit)
    target = resolve_target(wanted, dense, unit)
    smallest = smallest_cost(groups, unit)
    if smallest > target:
        share = smallest / dense
        raise TargetError(
            f"Target {unit}={wanted}: at most {target:,} {_UNIT_NAMES[unit]} cannot be reached. With everything "
            f"removed that can be removed, {smallest:,} of {dense:,} stay ({share:.4f}). Nothing was changed. Ask for "
            f"{unit}={math.ceil(share * 1000 + 1) / 1000} or more."
        )
    return target


def resolve_target(wanted: float, dense: int, unit: str) -> int:
    """An absolute target from a fraction of ``dense`` (a float in (0, 1)) or from an absolute number (an int).

    >>> resolve_target(0.25, 1000, "macs"), resolve_target(400, 1000, "macs")
    (250, 400)
    """
    if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 0:
        if wanted >= dense:
            raise TargetError(
                f"Target {unit}={wanted}: the model already has only {dense:,} {_UNIT_NAMES[unit]}, so there is "
                f"nothing to remove. Nothing was changed. Ask for fewer than {dense}, or for a fraction such as "
                f"{unit}=0.5."
            )
        return wanted
    if not (isinstance(wanted, float) and 0 < wanted < 1):
        raise TargetError(
            f"Target {unit}={wanted}: expected a fraction above 0 and below 1, or a whole number of "
            f"{_UNIT_NAMES[unit]}. Nothing was changed. Example: {unit}=0.5 halves the model."
        )
    return math.floor(wanted * dense)


def _the_one(wanted: dict[str, float | None]) -> tuple[str, float]:
    given = {unit: value for unit, value in wanted.items() if value is not None}
    if len(given) != 1:
        names = " and ".join(given) or "none"
        raise TargetError(
            f"A budget names exactly one of params, macs and size_bytes; given: {names}. Nothing was changed. "
            "Example: macs=0.5."
        )
    return next(iter(given.items()))
