"""Hardening of gates on single weights, alone or together with gates on channels.

requires: gates that were trained.
ensures:  a decision with masks whose true cost, zeros not counted, is at most the target; in parameters equal to it.
          Every weight that is left keeps its best element, channels that nothing reads any more are cut out, and the
          output still depends on the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.errors import TargetMissedError
from l0compress.gates.attach import GatedNetwork, fold
from l0compress.gates.reach import smallest_keep
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan, Keeps, cut
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.graph.groups.weights import Weight, find_weights
from l0compress.graph.nodes.network import argument_at
from l0compress.training.decision import Decision
from l0compress.training.limits import Limits
from l0compress.training.penalty import Penalty
from l0compress.training.rounding import round_weights
from l0compress.verification.calls import example_calls, named_leaves

_ROUNDS = 20
_BATCH = 8


def harden_sparse(gated: GatedNetwork, budget: Penalty) -> Decision:
    """Decide which moves and which single weights of ``gated`` stay; ``gated`` is not changed.

    Moves that are open with a probability above one half stay, as far as the budget leaves each weight one element.
    Then the weights of highest log_alpha stay that fit together. What nobody reads any more is cut out, and the
    budget that this frees goes to other weights.

    Raises:
        TargetMissedError: nothing that fits the budget lets the output depend on the input.
    """
    graph, limits = gated.graph(), budget.limits_on(gated.groups)
    scores = {
        name: (gate.probability_nonzero() if limits is None else gate.log_alpha).detach().cpu()
        for name, gate in gated.weight_gates.items()
    }
    elements = Elements(graph, gated.sparse, scores, limits)
    likely = KeepPlan(gated.groups, _likely_moves(gated, elements.enough, limits))
    plan = masked_plan(elements, likely, gated.gates.log_alpha.detach().cpu())
    decision = Decision(plan, shrink(fold(gated, plan), plan))
    check_connected(graph, decision.small)
    return decision


@dataclass(frozen=True, eq=False)
class Elements:
    """What single weights are chosen by.

    Attributes:
        graph: of the dense shapes, with the weights to choose from.
        weights: those that may hold zeros.
        scores: by name of the weight, of its shape: the highest stay. Without limits they are probabilities.
        limits: on the moves of the same graph; None where what is likelier than not stays.
    """

    graph: CapturedGraph
    weights: tuple[Weight, ...]
    scores: Mapping[str, Tensor]
    limits: Limits | None

    def enough(self, keep: Tensor) -> bool:
        """Whether some limit could be used up by the weights of what is kept."""
        return self.limits is None or self.limits.share(keep) >= 1


def masked_plan(elements: Elements, plan: KeepPlan, scores: Tensor) -> KeepPlan:
    """Choose the single weights of what a plan keeps, and cut out the channels that nothing reads any more.

    Args:
        scores: of moves, float ``(num_moves,)``: of the channels that nothing reads the lowest go first.
    """
    plan = _masked(elements, plan)
    for _ in range(_ROUNDS):
        narrower = _without_unread(plan, scores, elements.enough)
        if bool((narrower.keep == plan.keep).all()):
            break
        plan = _masked(elements, narrower)
    return plan


def _likely_moves(gated: GatedNetwork, enough: Callable[[Tensor], bool], limits: Limits | None) -> Tensor:
    """bool (num_moves,), closed: what is likely to be open, corrected where that is too much or too little."""
    groups, scores = gated.groups, gated.gates.log_alpha.detach().cpu()
    needed = smallest_keep(groups, scores)
    keep = groups.close(needed | (gated.gates.probability_nonzero().detach().cpu() > 0.5))
    if limits is None:
        return keep
    order = torch.argsort(scores, stable=True).tolist()
    closed = [move for move in reversed(order) if not keep[move]]
    # With every weight of fewer channels there would be room left.
    more = _first(len(closed), lambda count: enough(_with(groups, keep, closed[:count])))
    keep = _with(groups, keep, closed[:more])
    spare = [move for move in order if keep[move] and not needed[move]]
    fewer = _first(len(spare), lambda count: _can_fit(gated, _without(groups, keep, spare[:count]), limits))
    return _without(groups, keep, spare[:fewer])


def _can_fit(gated: GatedNetwork, keep: Tensor, limits: Limits) -> bool:
    """Whether some masks on what is kept fit."""
    return limits.allow([gated.smallest_cost(bound.resource, keep) for bound in limits.bounds])


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest number from 0 on for which a monotone condition holds, ``most`` where it never does."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _with(groups: Groups, keep: Tensor, moves: list[int]) -> Tensor:
    more = keep.clone()
    more[moves] = True
    return groups.close(more)


def _without(groups: Groups, keep: Tensor, moves: list[int]) -> Tensor:
    fewer = keep.clone()
    fewer[moves] = False
    return groups.close(fewer)


def _masked(elements: Elements, plan: KeepPlan) -> KeepPlan:
    """The plan with masks that fit the limits; elements that are cut anyway count as kept."""
    keeps, graph, limits = plan.parameter_keeps(), elements.graph, elements.limits
    small = graph if bool(plan.keep.all()) else shrink(graph, KeepPlan(plan.groups, plan.keep))
    names = {alias: weight.name for weight in elements.weights for alias in weight.names}
    of_small = {weight.name: names[weight.name] for weight in find_weights(small) if weight.name in names}
    scores = {new: cut(elements.scores[old], keeps[new]) for new, old in of_small.items()}
    if limits is None:
        masks = {
            new: _likely(left, graph.protection.least_of(of_small[new], left.numel())) for new, left in scores.items()
        }
    else:
        masks = round_weights(small, scores, limits.by_unit)
    shapes = {weight.name: weight.shape for weight in elements.weights}
    return plan.with_masks({old: whole_mask(masks[new], shapes[old], keeps[new]) for new, old in of_small.items()})


def _likely(probabilities: Tensor, least: int) -> Tensor:
    """What is likely to be open, and at least so many."""
    return (probabilities > 0.5) | (probabilities >= probabilities.flatten().topk(least).values[-1])


def whole_mask(mask: Tensor, shape: tuple[int, ...], keeps: Keeps) -> Tensor:
    """A small parameter's mask in the dense shape, True where the parameter is cut.

    >>> whole_mask(torch.tensor([[False, True]]), (2, 2), (torch.tensor([1]), None))
    tensor([[ True,  True],
            [False,  True]])
    """
    whole = torch.ones(shape, dtype=torch.bool)
    index = [torch.arange(size) if keep is None else keep for size, keep in zip(shape, keeps, strict=True)]
    whole[torch.meshgrid(*index, indexing="ij")] = mask
    return whole


def whole_masks(plan: KeepPlan, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of a small model's parameters in the dense shapes that ``plan`` cuts."""
    keeps, values = plan.parameter_keeps(), plan.groups.labelled.parameters
    return {name: whole_mask(mask, tuple(values[name].shape), keeps[name]) for name, mask in masks.items()}


def _without_unread(plan: KeepPlan, scores: Tensor, enough: Callable[[Tensor], bool]) -> KeepPlan:
    """The plan without the channels that only zeros read, as far as cutting them out changes nothing.

    The masks go: there is room for more. So many channels stay that ``enough`` is left to fill the budget.
    """
    groups = plan.groups
    present = _present(plan)
    read = torch.zeros(groups.num_moves + 1, dtype=torch.bool)
    known = torch.zeros(groups.num_moves + 1, dtype=torch.bool)
    for number, one in enumerate(groups.reads):
        known[one.moves.flatten()] = True
        read[one.moves[present[number]].flatten()] = True
    unread = torch.where(plan.keep & known[:-1] & ~read[:-1], scores, torch.inf).argsort(stable=True)
    order = unread[: int((plan.keep & known[:-1] & ~read[:-1]).sum())].tolist()
    whole = KeepPlan(groups, plan.keep)
    count = _first(len(order), lambda count: not enough(KeepPlan.further(whole, order[: count + 1]).keep))
    narrower = KeepPlan.further(whole, order[:count])
    silenced = [(one.silenced(narrower.alive) & ~one.silenced(plan.alive)).flatten() for one in groups.reads]
    exact = not any(bool((now & present[number]).any()) for number, now in enumerate(silenced))
    return narrower if exact else KeepPlan(groups, plan.keep, plan.masks)


def _present(plan: KeepPlan) -> list[Tensor]:
    """For every read, bool (channels,): whether anything but zeros reads the channel."""
    keeps = plan.parameter_keeps()
    nodes = {node.name: node for node in plan.groups.graph.nodes()}
    found = []
    for one in plan.groups.reads:
        source = argument_at(nodes[one.node], one.arg)
        mask = plan.masks.get(str(source.target)) if source.op == "get_attr" else None
        if mask is None:
            found.append(torch.ones(len(one.moves), dtype=torch.bool))
            continue
        left = mask & _uncut(mask, keeps[str(source.target)])
        dims = tuple(dim for dim, size in enumerate(one.shape) if size == 1)
        found.append(left.any(dims, keepdim=True).flatten() if dims else left.flatten())
    return found


def _uncut(mask: Tensor, keeps: Keeps) -> Tensor:
    """bool of the mask's shape: the elements that are not cut."""
    uncut = torch.zeros_like(mask)
    index = [torch.arange(size) if keep is None else keep for size, keep in zip(mask.shape, keeps, strict=True)]
    uncut[torch.meshgrid(*index, indexing="ij")] = True
    return uncut


def check_connected(before: CapturedGraph, after: CapturedGraph) -> None:
    """Compare what two calls return: where the inputs made a difference, they still have to.

    Raises:
        TargetMissedError: the output of ``after`` no longer depends on the input.
    """
    if _moves(before) and not _moves(after):
        raise TargetMissedError(
            "With so few weights the model's output no longer depends on its input.", fix="Ask for a larger target."
        )


def _moves(graph: CapturedGraph) -> bool:
    """Whether the outputs on two different calls differ anywhere."""
    module = graph.module()
    with torch.no_grad():
        first, second = (
            named_leaves(module(*call.args, **call.kwargs))
            for call in (example_calls(graph, (_BATCH,), seed=seed)[1] for seed in (0, 1))
        )
    return any(isinstance(value, Tensor) and not torch.equal(value, second[name]) for name, value in first.items())
