"""What the callbacks of all trainers share: a gated network under a budget, driven from optimizer step to step.

A callback cannot change the loss of somebody else's loop, but it can add to the gradient before the optimizer steps,
which comes to the same and does not depend on how the loop accumulates or averages its losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l0compress.errors import InputError
from l0compress.gates.attach import GatedNetwork
from l0compress.gates.folding import fold
from l0compress.graph import CapturedGraph, KeepPlan, masked
from l0compress.training.budget import Budget
from l0compress.training.harden import harden
from l0compress.training.targets import AnyTargets
from l0compress.verification.equality import Equality, verify

RAMP = 0.5


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished run leaves.

    Attributes:
        plan: which channels stay.
        small: the smaller model with the trained weights.
        masked: the dense-shaped model with these weights and the removed channels silenced: the reference.
        equality: how closely the two agree.
    """

    plan: KeepPlan
    small: CapturedGraph
    masked: CapturedGraph
    equality: Equality

    @property
    def dense(self) -> CapturedGraph:
        """The model as it was captured, for its cost."""
        return self.plan.groups.graph


class Control:
    """A gated network and its budget in somebody else's loop.

    ``ramp`` is the share of the run's steps over which the target falls from the dense cost to the budget.

    >>> import l0compress as l0
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    >>> control = Control(l0.gate(l0.capture(net, (torch.zeros(2, 8),))), "macs=0.5")
    >>> optimizer = torch.optim.AdamW(control.gated.param_groups(lr=1e-3))
    >>> control.begin_(num_steps=10)
    >>> control.check_optimizers([optimizer])
    >>> control.gated.train()(torch.randn(4, 8)).square().mean().backward()
    >>> control.before_step_()
    >>> optimizer.step()
    >>> control.finish().equality.max_relative < 1e-5
    True

    Raises TargetError and InputError as :class:`~l0compress.Budget`.
    """

    def __init__(self, gated: GatedNetwork, target: AnyTargets, *, ramp: float = RAMP) -> None:
        self.gated, self.budget, self._ramp = gated, Budget(gated, target), ramp

    def begin_(self, num_steps: int) -> None:
        """Say how many optimizer steps the run has, those before a checkpoint included."""
        self.budget.ramp_steps = max(1, round(self._ramp * num_steps))
        self.budget.load_state_dict(self.budget.state_dict())  # moves the target to its place on the ramp

    def check_optimizers(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Check that the gates are trained, at a rate of their own and without decay.

        Raises:
            InputError: they are not.
        """
        gates = self.gate_ids()
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        holding = [group for group in groups if any(id(parameter) in gates for parameter in group["params"])]
        mixed = any(id(parameter) not in gates for group in holding for parameter in group["params"])
        if not holding or mixed or any(group.get("weight_decay") for group in holding):
            what = "are in a group with the weights" if mixed else "are decayed" if holding else "are in no optimizer"
            raise InputError(
                f"the gates {what}, but have to be trained by themselves, at a higher rate and without decay.",
                fix="Make the optimizer of gated.param_groups(lr=...), for example torch.optim.AdamW.",
                assurance="Nothing was trained.",
            )

    def trained_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer holds the gates."""
        gates = self.gate_ids()
        return any(id(parameter) in gates for group in optimizer.param_groups for parameter in group["params"])

    def gate_ids(self) -> set[int]:
        """The gates, by identity."""
        return {id(parameter) for parameter in self.gated.gate_parameters().values()}

    def before_step_(self) -> None:
        """Add the penalty's gradient to that of the loss, and move the multiplier; once before each optimizer step."""
        with torch.enable_grad():
            self.budget.penalty().backward()
        self.budget.step()

    def report(self) -> dict[str, float]:
        """What a log shows."""
        found = {f"l0/density_{each.unit}": each.density for each in self.budget.constraints}
        return {**found, "l0/multiplier": self.budget.multiplier}

    def values(self) -> Tensor:
        """All that has to be known to go on, beside weights, gates and optimizer: float64."""
        return torch.tensor(list(self.budget.state_dict().values()), dtype=torch.float64)

    def load_values_(self, values: Tensor | Mapping[str, float]) -> None:
        """Go on from :meth:`values`, or from the budget's own."""
        if isinstance(values, Tensor):
            values = dict(zip(self.budget.state_dict(), values.tolist(), strict=True))
        self.budget.load_state_dict(values)

    def finish(self) -> Outcome:
        """Decide what stays, cut the rest out and compare; the gated network stays as it is.

        Raises:
            TargetError, TargetMissedError: as :func:`~l0compress.harden`.
            NotEqualError: the small model does not compute what the masked dense model computes.
        """
        plan = harden(self.gated, self.budget)
        folded, small = fold(self.gated, plan), self.gated.shrink(plan)
        reference = replace(folded, graph_module=masked(folded, plan))
        return Outcome(plan, small, reference, verify(small, reference))
