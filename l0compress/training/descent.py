"""Deciding without training: score, round, cut and repair, in steps down to the budget.

requires: the groups of a dense graph, and a way to score moves.
ensures:  a decision within the budget, and weights that make up for it as well as closed forms can.

One large cut is scored by a network that is nothing like the one that it leaves. Several small ones are each scored on
what the one before left, repaired. A score speaks of each move by itself, with all others there: where any head of a
layer can be spared, all of them together may not. So a step leaves a share of every group.

Source: gradual pruning as in Zhu and Gupta, "To prune, or not to prune", 2017, with a repair in place of training
between the cuts, as in Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.errors import TargetMissedError
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.training.closing import closed
from l0compress.training.harden import decide
from l0compress.training.limits import Limits
from l0compress.training.narrowing import Narrowed, Refine

# What a step leaves of the step before, at least.
STEP = 0.7
# And of every group of moves, where anything else can go in its place.
GROUP_STEP = 0.1

Score = Callable[[Limits], Tensor]
OnStep = Callable[[int, int, tuple[int, ...]], None]


def _untold(number: int, steps: int, left: tuple[int, ...]) -> None:
    del number, steps, left


def steps_down(dense: int, target: int, *, step: float = STEP, at_least: int = 1) -> list[int]:
    """The budgets on the way, geometric, the last one the target.

    >>> steps_down(1000, 500), steps_down(1000, 250), steps_down(1000, 900)
    ([707, 500], [707, 500, 353, 250], [900])
    """
    count = max(at_least, math.ceil(math.log(target / dense) / math.log(step) - 1e-9))
    return [int(dense * (target / dense) ** (position / count)) for position in range(1, count)] + [target]


def steps_in_step(dense: Sequence[int], targets: Sequence[int], *, step: float = STEP) -> list[tuple[int, ...]]:
    """The budgets on the way where there are several: as many steps as the one furthest away needs, for all of them.

    >>> steps_in_step([1000, 4000], [250, 2000])
    [(707, 3363), (500, 2828), (353, 2378), (250, 2000)]
    """
    pairs = list(zip(dense, targets, strict=True))
    most = max(len(steps_down(start, target, step=step)) for start, target in pairs)
    return list(zip(*(steps_down(start, target, step=step, at_least=most) for start, target in pairs), strict=True))


@dataclass(frozen=True, eq=False)
class Descent:
    """Attributes:
    before: the network before the last step.
    scores: of its moves, float ``(moves,)``.
    last: what the last step kept, on the groups of ``before``.
    end: the network within the budget.
    """

    before: Narrowed
    scores: Tensor
    last: KeepPlan
    end: Narrowed


def descend(limits: Limits, score: Score, repair: Refine, *, on_step: OnStep = _untold) -> Descent:
    """A network cut down to ``limits``; every step is scored anew on what the one before left.

    Args:
        limits: on the dense network's groups.
        score: float ``(num_moves,)`` of the groups of a step's limits, those on what was left of the network by then.
        repair: weights for a small graph, given all that was decided.
        on_step: called before every step with its number, how many there are, and what is used so far of each resource.

    Raises:
        TargetMissedError: no choice of what to remove keeps to the limits.
    """
    try:
        return _descended(Narrowed.whole(limits.groups), limits, score, repair, on_step)
    except TargetMissedError:
        # What the steps before leave may not come as low as what the dense network does, near the least that there is.
        return _at_once(Narrowed.whole(limits.groups), limits, score, repair)


def _at_once(whole: Narrowed, limits: Limits, score: Score, repair: Refine) -> Descent:
    here = whole.limits(limits)
    scores, last = _decided(whole, here, score, limits.most, is_last=True)
    return Descent(whole, scores, last, whole.cut(last, repair))


def _descended(before: Narrowed, limits: Limits, score: Score, repair: Refine, on_step: OnStep) -> Descent:
    steps = steps_in_step(limits.dense(), limits.most)
    for number, most in enumerate(steps[:-1]):
        here = before.limits(limits)
        on_step(number, len(steps), here.dense())
        # A step may leave less than was asked for, where single moves are large.
        if not here.at(most).allow(here.dense()):
            before = before.cut(_decided(before, here, score, most)[1], repair)
    if limits.allow(before.limits(limits).dense()):
        before = Narrowed.whole(limits.groups)
    here = before.limits(limits)
    on_step(len(steps) - 1, len(steps), here.dense())
    return _at_once(before, limits, score, repair)


def _decided(
    now: Narrowed, limits: Limits, score: Score, most: Sequence[int], *, is_last: bool = False
) -> tuple[Tensor, KeepPlan]:
    limits = limits.at(most)
    scores = now.settled(score(limits))
    held = held_back(now.groups, scores, GROUP_STEP)
    if not is_last:
        return scores, decide(limits, held)
    return scores, closed(lambda within: decide(within, held), lambda plan: shrink(now.graph, plan), limits)


def held_back(groups: Groups, scores: Tensor, share: float) -> Tensor:
    """float64 ``(num_moves,)``: the order of ``scores``, but that ``share`` of every group go after all others.

    >>> from torch import nn, tensor, zeros
    >>> from l0compress.graph import capture, find_groups
    >>> groups = find_groups(capture(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), (zeros(2, 2),)))
    >>> [(group.kind, list(group.moves)) for group in groups.groups]
    [('channels', [0, 1, 2, 3]), ('inputs', [4, 5])]
    >>> held_back(groups, tensor([1.0, 3.0, 2.0, 0.5, 9.0, 8.0]), 0.5).argsort().tolist()
    [3, 0, 5, 2, 1, 4]
    """
    # Ranks, since scores may be infinite, or so far apart that nothing can be added to them.
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[scores.argsort(stable=True)] = torch.arange(len(scores), dtype=torch.float64)
    held = ranks.clone()
    for group in groups.groups:
        moves = torch.tensor(list(group.moves))
        best = ranks[moves].argsort(descending=True)[: math.ceil(share * len(moves))]
        held[moves[best]] += len(scores)
    return held
