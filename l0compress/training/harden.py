"""Hardening: learned gates become a decision, and the decision keeps to the exact integer budget.

requires: gates that were trained.
ensures:  a closed :class:`KeepPlan` whose true cost is at most the target, and above 97 % of it wherever the costs of
          single moves are fine enough to allow that.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from l0compress.errors import InputError, TargetError, TargetMissedError
from l0compress.gates.attach import GatedNetwork, check_gated
from l0compress.gates.folding import fold, unfit_weights
from l0compress.gates.reach import smallest_keep
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.training.alignment import align
from l0compress.training.closing import closed
from l0compress.training.decision import Decision
from l0compress.training.limits import Limits
from l0compress.training.penalty import Penalty
from l0compress.training.refill import Portion, refill
from l0compress.training.sparse_harden import harden_sparse


def harden(gated: GatedNetwork, budget: Penalty, *, allow_untrained: bool = False) -> KeepPlan:
    """Decide which moves of ``gated`` stay: those of highest log_alpha that fit the budget together.

    Without a target (a fixed penalty), those that are kept with probability above one half stay. A group keeps its
    best move unless it can vanish. ``gated`` is not changed. Where single weights carry gates, the plan has masks, and
    the budget is on what is not zero; see :func:`~l0compress.training.sparse_harden.harden_sparse`.

    ``gated.shrink(plan)`` is the small trained model. The plan refuses the weights from before training; and gates
    that no step has moved are refused, unless ``allow_untrained`` says that their first order is meant.

    >>> from l0compress import Budget, capture, gate
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    >>> gated = gate(capture(model, (torch.zeros(2, 8),)))
    >>> budget = Budget(gated, {"macs": 0.5})
    >>> optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-3))
    >>> (gated(torch.randn(16, 8)).square().mean() + budget.penalty()).backward()
    >>> optimizer.step()
    >>> plan = harden(gated, budget)
    >>> plan.cost.macs <= budget.target, gated.shrink(plan).module()(torch.zeros(4, 8)).shape
    (True, torch.Size([4, 3]))

    Raises:
        InputError: ``gated`` is no gated network, or ``budget`` no budget.
        TargetError: the budget is on another network, or no step has moved the gates.
        TargetMissedError: not even the smallest choice fits the budget.
    """
    check_hardenable(gated, budget, allow_untrained=allow_untrained)
    plan = harden_sparse(gated, budget).plan if gated.sparse else _harden_moves(gated, budget)
    return replace(plan, unfit=unfit_weights(gated, plan))


def decide_by_gates(gated: GatedNetwork, budget: Penalty) -> Decision:
    """As :func:`harden`, together with the small graph: what ``gated.shrink(harden(gated, budget))`` returns.

    ``budget`` is the one that ``gated`` was trained under.
    """
    if gated.sparse:
        return harden_sparse(gated, budget)
    plan = _harden_moves(gated, budget)
    return Decision(plan, shrink(fold(gated, plan), plan))


def check_hardenable(gated: GatedNetwork, budget: Penalty, *, allow_untrained: bool) -> None:
    """Raises:
    InputError, TargetError: as :func:`harden`.
    """
    check_gated(gated, "harden")
    if not isinstance(budget, Penalty):
        raise InputError(
            f"harden takes the Budget that the gates were trained under, but this is {type(budget).__name__}.",
            fix="Write budget = l0compress.Budget(gated, {'macs': 0.5}) before training.",
        )
    known = budget.gated.gate_parameters().keys() == gated.gate_parameters().keys()
    if not (known and budget.gated.is_of(gated.groups)):
        raise TargetError(
            f"the budget ({', '.join(budget.units)}) belongs to a different network.",
            fix="Harden the network that the budget was made for, or make one for this network and train it.",
        )
    if not (allow_untrained or gated.has_moved()):
        raise TargetError(
            "the gates are at their initial values: no step has moved them, so hardening would remove at random.",
            fix=(
                "Train first, with an optimizer over gated.param_groups(lr=...) and budget.penalty() in the loss; to "
                "use the initial order, write harden(gated, budget, allow_untrained=True)."
            ),
        )


def _harden_moves(gated: GatedNetwork, budget: Penalty) -> KeepPlan:
    scores = gated.gates.log_alpha.detach().cpu()
    limits = budget.limits_on(gated.groups)
    if limits is None:
        likely = gated.gates.probability_nonzero().detach().cpu() > 0.5
        return KeepPlan.from_keep(gated.groups, gated.groups.close(likely | smallest_keep(gated.groups, scores)))
    return closed(lambda within: decide(within, scores), lambda plan: shrink(gated.groups.graph, plan), limits)


def decide(limits: Limits, scores: Tensor) -> KeepPlan:
    """Round scores to limits, with convolution widths in whole vector blocks where the limits allow it.

    Raises:
        TargetMissedError: as :func:`round_to_budget`.
    """
    plan = round_to_budget(limits, scores)
    return KeepPlan(limits.groups, align(plan, scores, limits))


def round_to_budget(limits: Limits, scores: Tensor) -> KeepPlan:
    """Remove moves from the lowest score upwards until every limit is kept, then fill the room left.

    ``scores`` is a float tensor of shape ``(num_moves,)``. The shortest such run of removals is found by bisection.
    Removed moves that still fit then return, best first. Where the result stays under 97 % of every limit because one
    expensive move was the last to go, that move is spared and cheaper ones go instead.

    Raises:
        TargetMissedError: with everything removed that can be removed, more than a limit is left.
    """
    groups = limits.groups
    best = smallest_keep(groups, scores)
    _check_reached(limits, limits.costs(best))
    needed = best.tolist()
    order = [move for move in torch.argsort(scores, stable=True).tolist() if not needed[move]]
    chosen = keep = _fill(order, limits)
    while order and not limits.is_used(chosen):
        order = _sparing_last(groups, order, keep)
        keep = _fill(order, limits)
        if not limits.fits(keep):
            break
        chosen = max(chosen, keep, key=limits.share)
    return KeepPlan.from_keep(groups, chosen)


def _check_reached(limits: Limits, smallest: tuple[int, ...]) -> None:
    missed = [(bound, least) for bound, least in zip(limits.bounds, smallest, strict=True) if least > bound.most]
    if missed:
        raise TargetMissedError(
            f"No choice of what to remove reaches {' and '.join(str(bound) for bound, _ in missed)}: with everything "
            f"removable removed, {' and '.join(f'{least:,}' for _, least in missed)} remain.",
            fix="Ask for a larger target.",
        )


def _fill(order: list[int], limits: Limits) -> Tensor:
    """Remove the shortest prefix of ``order`` that fits, all of it if none does; then take back what still fits.

    The result is closed.
    """
    groups = limits.groups
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if limits.fits(_without(groups, order[:middle])):
            high = middle
        else:
            low = middle + 1
    group_of = groups.group_of_move.tolist()
    removed = [Portion(group_of[move], (move,)) for move in reversed(order[:low])]
    return refill(groups.close(_without(groups, order[:low])), removed, limits.fitted)


def _sparing_last(groups: Groups, order: list[int], keep: Tensor) -> list[int]:
    """``order`` without the last move that was removed, and without those of its group that would have been next."""
    group_of, kept = groups.group_of_move.tolist(), keep.tolist()
    position = max((index for index, move in enumerate(order) if not kept[move]), default=-1)
    return [
        move
        for index, move in enumerate(order)
        if index < position or (index > position and group_of[move] != group_of[order[position]])
    ]


def _without(groups: Groups, removed: list[int]) -> Tensor:
    keep = torch.ones(groups.num_moves, dtype=torch.bool)
    keep[removed] = False
    return keep
