"""Make the user's own module smaller in place, and prove that it computes what the masked dense model computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from l0compress.errors import InputError, NotEqualError, PlanError, SurgeryError
from l0compress.export.module.attributes import UNCHANGED, Choice, choices_of, describe_, ways_through
from l0compress.export.module.means import rescale_means_
from l0compress.export.module.transaction import Transaction
from l0compress.export.module.weights import alone, check_same_model, cut_weights, dense_weights, following, tensors_of
from l0compress.export.module.whys import Refusal, reason_of, refused
from l0compress.graph import CapturedGraph, GraphNetwork, KeepPlan, masked, shrink
from l0compress.graph.capture.caches import without_caches
from l0compress.graph.capture.instance_state import kept
from l0compress.loading.wrappers import unwrapped
from l0compress.verification.calls import example_calls
from l0compress.verification.equality import Equality, verify

# The module's own code runs here, and may raise anything.
USER_CODE_ERRORS = (Exception,)


def shrink_module_(
    model: nn.Module, plan: KeepPlan, small: CapturedGraph | None = None, *, whole: Sequence[str] = ()
) -> Equality:
    """Cut ``model`` itself as ``plan`` says: the same classes, attributes and names of parameters, smaller layers.

    Parameters and buffers are sliced, the attributes that say how wide a layer is are brought in line, and the result
    is run beside the masked dense model. Unless the two are equal nothing is changed. Parameters stay the same objects;
    make a new optimizer, since the state of the old one has the old shapes. A ``LayerNorm`` or ``RMSNorm`` that loses
    channels becomes a subclass that still counts them.

    Args:
        model: the module that was captured, or another one of the same class and size, in any mode, on any device.
        plan: what stays.
        small: the small model that the weights are taken from, as ``compress(...).small`` and ``gated.shrink(plan)``
            return it; without it they are ``model``'s own.
        whole: groups that stay whole, by name as in :meth:`KeepPlan.kept`, with zeros for what the plan drops. Columns
            that read the model's input always do, since ``forward`` is called with all of it.

    Returns:
        How closely the small module and the masked dense model agree.

    Raises:
        PlanError: the plan is not one of this model, or came out of training, and the weights are those from before.
        SurgeryError: the module's code cannot follow the plan, say because a width is written in ``forward``; the
            message says where, and in which groups.

    Example:
        In another process the plan's tensors make the same shapes, into which the weights can be loaded.

        >>> import torch, l0compress as l0
        >>> def build():
        ...     return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
        >>> model, x = build(), torch.randn(8, 4)
        >>> plan = KeepPlan.random(l0.find_groups(l0.capture(model, (x,))), density=0.25)
        >>> shrink_module_(model, plan).max_relative < 1e-5
        True
        >>> model[0]
        Linear(in_features=4, out_features=8, bias=True)
        >>> again = build()
        >>> plan = KeepPlan.from_tensors(l0.find_groups(l0.capture(again, (x,))), plan.tensors())
        >>> equality = shrink_module_(again, plan)
        >>> again.load_state_dict(model.state_dict())
        <All keys matched successfully>
    """
    job = _job(model, plan, small, tuple(whole))
    with Transaction() as changes:
        outcome = job.attempt_(changes, job.plan, job.followed)
        if isinstance(outcome, Equality):
            changes.commit_()
            return outcome
    raise job.refused(outcome)


@dataclass(frozen=True, eq=False)
class _Job:
    """A module, and the dense graph with the weights that it is to be cut from."""

    module: nn.Module
    dense: CapturedGraph
    plan: KeepPlan
    followed: KeepPlan

    def attempt_(self, changes: Transaction, plan: KeepPlan, followed: KeepPlan) -> Equality | Refusal:
        """Cut the module and compare it; the caller undoes it where that failed."""
        small = shrink(self.dense, followed)
        modules = dict(self.module.named_modules(remove_duplicate=False))
        choices = choices_of(modules, self.dense, small)
        changes.evaluating_(self.module)
        self._cut_(changes, plan, followed)
        describe_(changes, modules, self.dense, small, followed)
        rescale_means_(changes, modules, self.dense, followed)
        reference, refusals = masked(self.dense, plan), []
        for way in ways_through(choices):
            outcome = self._tried(choices, way, reference)
            if isinstance(outcome, Equality):
                self._take_needed_(changes, choices, way, reference)
                return outcome
            refusals.append(outcome)
        # What ran and differs says more than what does not even run.
        return max(refusals, key=lambda refusal: refusal.ran)

    def _tried(self, choices: Sequence[Choice], way: Sequence[int], reference: GraphNetwork) -> Equality | Refusal:
        with Transaction() as widths:
            for choice, number in zip(choices, way, strict=True):
                choice.take_(widths, number)
            return self._compared(reference)

    def _take_needed_(
        self, changes: Transaction, choices: Sequence[Choice], way: Sequence[int], reference: GraphNetwork
    ) -> None:
        """Change the attributes, but for those that have the same number by chance: without them it is equal too."""
        needed = list(way)
        for position in range(len(choices)):
            without = [UNCHANGED if other == position else number for other, number in enumerate(needed)]
            if isinstance(self._tried(choices, without, reference), Equality):
                needed = without
        for choice, number in zip(choices, needed, strict=True):
            choice.take_(changes, number)

    def _cut_(self, changes: Transaction, plan: KeepPlan, followed: KeepPlan) -> None:
        own, done = tensors_of(self.module), set()
        for name, values in cut_weights(self.dense, plan, followed).items():
            if name in own and id(own[name]) not in done:
                done.add(id(own[name]))
                changes.cut_(own[name], values.to(own[name]))

    def _compared(self, reference: GraphNetwork) -> Equality | Refusal:
        calls = example_calls(self.dense)
        try:
            with kept(self.module, values=True), without_caches(self.module):
                return verify(self.module, reference, inputs=calls)
        except NotEqualError as difference:
            said = str(difference).partition("not equal: ")[2].partition(" The result is refused")[0]
            return Refusal(f"the module runs, but {said.rstrip('.')}", ran=True)
        except USER_CODE_ERRORS as error:
            return reason_of(error, self.module)

    def refused(self, refusal: Refusal) -> SurgeryError:
        """The error, with the groups that the module cannot even follow alone."""
        plans, alone_refused = alone(self.followed), {}
        for name, plan in plans.items():
            with Transaction() as changes:
                outcome = self.attempt_(changes, plan, plan)
            if isinstance(outcome, Refusal):
                alone_refused[name] = outcome
        return refused(self.module, refusal, alone_refused, list(plans))


def _job(model: nn.Module, plan: KeepPlan, small: CapturedGraph | None, whole: tuple[str, ...]) -> _Job:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"shrink_module_ takes a module, but this is {type(model).__name__}.",
            fix="Pass the nn.Module that was captured; it is changed in place.",
        )
    if not isinstance(plan, KeepPlan):
        raise PlanError(
            f"shrink_module_ takes a plan, but this is {type(plan).__name__}.",
            fix="Write shrink_module_(model, result.plan, result.small).",
        )
    module = unwrapped(model)
    check_same_model(module, plan)
    dense = dense_weights(module, plan, small)
    if small is None:
        plan.check_fits(dense)
    return _Job(module, dense, plan.decision(), following(plan, whole))
