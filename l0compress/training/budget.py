"""A budget as a constraint: minimise the loss subject to ``cost <= target``.

A fixed penalty on the expected cost is badly conditioned: nothing is removed until its weight is large enough, and then
everything is. :class:`Budget` instead descends on weights and gates and ascends on a Lagrange multiplier of

    violation = log E[cost of the model after removal] - log target_now        (<= 0 is feasible)

The multiplier grows while the budget is violated and restarts at 0 once it is met, as in Gallego-Posada et al.,
"Controlled Sparsity via Constrained Optimization or: How I Learned to Stop Tuning Penalties and Love Constraints",
NeurIPS 2022, section 3.3. The target starts at the model's own cost and falls cubically (Zhu and Gupta, "To prune, or
not to prune", 2017, equation 1). With several targets each has a multiplier of its own, and their terms add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from l0compress.errors import TargetError
from l0compress.gates.attach import GatedNetwork, check_gated
from l0compress.graph.groups import Groups
from l0compress.graph.groups.resource import Counted, Resource
from l0compress.training.constraint import Constraint
from l0compress.training.events import told
from l0compress.training.latency_targets import Allowances, allowances
from l0compress.training.limits import Bound, Limits
from l0compress.training.multiplier import AscentSettings, Multiplier
from l0compress.training.penalty import FixedPenalty as FixedPenalty
from l0compress.training.penalty import Penalty as Penalty
from l0compress.training.reachable import check_countable, check_reachable
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import AbsoluteTarget, AnyTargets, absolute_targets

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ASCENT = AscentSettings()


class Units(TypedDict, total=False):
    """The keywords that name a target, an older spelling of ``{"macs": 0.5}``; ``size_bytes`` is ``bytes``."""

    params: float | None
    macs: float | None
    bytes: float | None
    size_bytes: float | None
    int8_bytes: float | None


class Budget(Penalty):
    """Holds the expected cost of ``gated`` after removal to a target in parameters, MACs, bytes or bytes of int8.

    ``target`` names one of ``params``, ``macs``, ``bytes`` and ``int8_bytes``, which counts what the int8 file
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

    >>> import torch
    >>> from l0compress import capture, gate
    >>> gated = gate(capture(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), (torch.zeros(2, 4),)))
    >>> budget = Budget(gated, {"macs": 0.5})
    >>> budget.dense, budget.target
    (48, 24)

    Several targets hold together: ``{"macs": 0.5, "bytes": 4_000_000}``, or a list, ``["macs=0.5", "bytes=4MB"]``. Each
    is a :class:`~l0compress.training.constraint.Constraint` with a multiplier and a ramp of its own in
    :attr:`constraints`; what a budget says of one target (:attr:`unit`, :attr:`target`, ...) is asked of those.

    >>> both = Budget(gated, {"macs": 0.5, "params": 0.6})
    >>> [(constraint.unit, constraint.target) for constraint in both.constraints]
    [('macs', 24), ('params', 34)]

    Raises TargetError for a malformed target, and for one that no choice of what to remove can reach; InputError where
    ``gated`` is no gated network.
    """

    constraints: tuple[Constraint, ...]

    def __init__(
        self,
        gated: GatedNetwork,
        target: AnyTargets | AbsoluteTarget | Sequence[AbsoluteTarget] | None = None,
        *,
        ramp_steps: int = 0,
        ascent: AscentSettings = _ASCENT,
        **units: Unpack[Units],
    ) -> None:
        check_gated(gated, "Budget")
        targets = absolute_targets(target, _allowances(gated), **units)
        check_countable(targets, single_weights=bool(gated.sparse))
        check_reachable(targets, gated.groups, gated.smallest_cost)
        self._begin_(gated, targets, Limits.of(gated.groups, targets), ramp_steps, ascent)

    @classmethod
    def at(
        cls,
        gated: GatedNetwork,
        targets: tuple[AbsoluteTarget, ...],
        limits: Limits,
        *,
        ascent: AscentSettings = _ASCENT,
    ) -> Budget:
        """A budget on ``gated``, what is left of the network of the targets, in force from the first step.

        The targets were found to be within reach of that network, and are not checked again. ``limits`` are the same on
        the groups of ``gated``.
        """
        budget = cls.__new__(cls)
        budget._begin_(gated, targets, limits, 0, ascent)
        return budget

    def _begin_(
        self,
        gated: GatedNetwork,
        targets: tuple[AbsoluteTarget, ...],
        limits: Limits,
        ramp_steps: int,
        ascent: AscentSettings,
    ) -> None:
        super().__init__(gated)
        self.constraints = tuple(
            Constraint(gated, bound.resource, target, Multiplier(ascent))
            for target, bound in zip(targets, limits.bounds, strict=True)
        )
        self.ramp_steps = ramp_steps
        self._go_to_(0)

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(constraint.unit for constraint in self.constraints)

    @property
    def resources(self) -> tuple[Resource, ...]:
        return tuple(constraint.resource for constraint in self.constraints)

    def limits_on(self, groups: Groups) -> Limits:
        return Limits(groups, tuple(Bound(each.resource, each.target) for each in self.constraints))

    @property
    def only(self) -> Constraint:
        """The only constraint.

        Raises:
            TargetError: there are several.
        """
        first, *others = self.constraints
        if others:
            raise TargetError(
                f"this budget has {len(self.constraints)} targets, {' and '.join(self.units)}, each with numbers of "
                "its own.",
                fix="Read them one by one, for example [c.target for c in budget.constraints].",
            )
        return first

    @property
    def unit(self) -> str:
        """What the only target is on: ``params``, ``macs``, ``bytes`` or ``int8_bytes``."""
        return self.only.unit

    @property
    def dense(self) -> int:
        """The cost, in the unit of the only target, with nothing removed."""
        return self.only.dense

    @property
    def target(self) -> int:
        """The most that hardening may leave, in the unit of the only target."""
        return self.only.target

    @property
    def target_now(self) -> float:
        """The target in force at this step of the ramp, in the unit of the only target."""
        return self.only.target_now

    def expected_cost(self) -> Tensor:
        """Expected cost after removal, a scalar in the unit of the only target, differentiable in the gates."""
        return self.only.expected_cost()

    @property
    def violation(self) -> float:
        """``log E[cost] - log target_now``, the largest of all targets; feasible where <= 0."""
        return max(constraint.violation for constraint in self.constraints)

    @property
    def density(self) -> float:
        """Expected cost after removal over the dense cost, of the target that is violated most."""
        return self._tightest.density

    @property
    def multiplier(self) -> float:
        """The Lagrange multiplier, what a unit of log cost weighs in the loss, of the target that is violated most."""
        return self._tightest.multiplier

    @property
    def _tightest(self) -> Constraint:
        return max(self.constraints, key=lambda constraint: constraint.violation)

    def _amount(self) -> Tensor:
        first, *others = (constraint.penalty() for constraint in self.constraints)
        return sum(others, first)

    def step(self) -> None:
        """Ascend on each multiplier by the violation of the last :meth:`penalty`; move the targets along their ramp."""
        for constraint in self.constraints:
            constraint.step_()
        self._go_to_(self._num_steps + 1)

    def _go_to_(self, num_steps: int) -> None:
        self._num_steps = num_steps
        if self.ramp_steps > 0:
            for constraint in self.constraints:
                constraint.move_target_(num_steps / self.ramp_steps)

    def follow_(self, gated: GatedNetwork, kept_moves: Tensor) -> None:
        super().follow_(gated, kept_moves)
        for constraint in self.constraints:
            constraint.follow_(gated, kept_moves)

    def report(self) -> dict[str, Any]:
        return told({constraint.unit: constraint.report() for constraint in self.constraints}, key="violation")

    def state_dict(self) -> dict[str, float]:
        """The ramp's position and the state of each multiplier, under its unit where there are several."""
        found: dict[str, float] = {"num_steps": self._num_steps}
        for prefix, constraint in self._prefixed():
            found.update({f"{prefix}{name}": value for name, value in constraint.state_dict().items()})
        return found

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        for prefix, constraint in self._prefixed():
            mine = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            constraint.load_state_dict(mine)
        self._go_to_(int(values["num_steps"]))

    def _prefixed(self) -> list[tuple[str, Constraint]]:
        several = len(self.constraints) > 1
        return [(f"{constraint.unit}." if several else "", constraint) for constraint in self.constraints]

    def __repr__(self) -> str:
        ramp = f" of {self.ramp_steps:,} of its ramp" if self.ramp_steps > 0 else ""
        parts = [
            f"{each.unit}: at most {each.target:,} of {each.dense:,}; expected now {each.density:.1%}, "
            f"multiplier {each.multiplier:.4g}"
            for each in self.constraints
        ]
        return f"Budget({'; '.join(parts)}, step {self._num_steps:,}{ramp})"


def _allowances(gated: GatedNetwork) -> Allowances:
    """What targets allow of the network that there is now."""
    return allowances(gated.groups.graph, FinetuneSettings(), counted=lambda unit: Counted(gated.groups, unit).dense)
