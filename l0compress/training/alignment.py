"""Alignment: convolution widths in whole vector blocks, since kernels compute the odd channels of a block anyway.

requires: a decision that fits the budget, and the scores that it was made by.
ensures:  a decision that fits too, in which convolution widths are multiples of a block wherever the budget still ends
          above 97 % used; the last width that is filled may be odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import torch
from torch import Tensor

from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import Groups
from l0compress.graph.groups.naming import Group
from l0compress.training.limits import Limits
from l0compress.training.refill import Portion, refill

WIDTH_MULTIPLE = 8


def align(plan: KeepPlan, scores: Tensor, limits: Limits) -> Tensor:
    """Round convolution widths to multiples of :data:`WIDTH_MULTIPLE` under a budget.

    Every width is rounded down first; then blocks return, to the widths that lost most of theirs before any others, and
    by score among equals. What room is left goes to other layers, and only then to odd channels of one convolution.

    Args:
        plan: a decision within ``limits``.
        scores: float (num_moves,): higher stays.

    Returns:
        bool (num_moves,), closed, within ``limits``; that of ``plan`` itself where alignment would use less than 97 %.
    """
    groups, keep = limits.groups, plan.keep
    blocks = [group for group in groups.groups if is_aligned_kind(groups, group)]
    if not blocks:
        return keep
    trial = keep.clone()
    for group in blocks:
        trial = _with_width(trial, group, scores, _floor(int(keep[list(group.moves)].sum()), _least(groups, group)))
    chosen = limits.fitted(trial)
    if chosen is None:
        return keep
    chosen = refill(chosen, _blocks_back(chosen, blocks, scores, keep), limits.fitted)
    others = [move for group in groups.groups if group not in blocks for move in group.moves]
    chosen = _return_moves(chosen, others, scores, limits)
    for group in sorted(blocks, key=lambda group: group.macs / len(group.moves)):
        if limits.is_used(chosen):
            break
        chosen = _return_moves(chosen, group.moves, scores, limits)
    return chosen if limits.is_used(chosen) or limits.share(chosen) >= limits.share(keep) else keep


def is_aligned_kind(groups: Groups, group: Group) -> bool:
    """Plain channels of a convolution, at least two blocks of them."""
    names = [place.rpartition(":")[0] for place in group.where]
    kernels = any(len(groups.labelled.parameters[name].shape) > 2 for name in names)
    return kernels and group.kind == "channels" and len(group.moves) >= 2 * WIDTH_MULTIPLE


def _least(groups: Groups, group: Group) -> int:
    """How many moves of a group have to stay."""
    return max((count for moves, count in groups.floors.sets() if group.moves[0] in moves.tolist()), default=0)


def _floor(width: int, least: int) -> int:
    """The largest multiple of a block that is no wider; a width below one block, or that must not fall, stays."""
    floor = width - width % WIDTH_MULTIPLE
    return width if floor < max(least, WIDTH_MULTIPLE) else floor


def _with_width(keep: Tensor, group: Group, scores: Tensor, width: int) -> Tensor:
    """The same decision with the ``width`` best moves of a group, those that were kept before any others."""
    moves = torch.tensor(group.moves)
    preferred = scores[moves] + keep[moves] * (scores.max() - scores.min() + 1)
    changed = keep.clone()
    changed[moves] = False
    changed[moves[preferred.argsort(descending=True, stable=True)[:width]]] = True
    return changed


@dataclass(frozen=True, order=True)
class _Claim:
    """A width that has lost channels; the least one gets the next block. ``lost`` has the best channel first."""

    missing: int  # the negative of how many channels it had more before it was rounded down
    score: float  # the negative of the best lost channel's score
    position: int
    lost: tuple[int, ...] = field(compare=False)


def _blocks_back(keep: Tensor, blocks: Sequence[Group], scores: Tensor, before: Tensor) -> list[Portion]:
    """What ``keep`` lacks of ``blocks``, a block at a time: the widths that miss most of theirs ``before`` first.

    Among equals the block goes first whose best channel has the higher score, then the earlier one of ``blocks``.
    """
    value = scores.tolist()
    claims: list[_Claim] = []

    def claim(position: int, lost: Sequence[int], missing: int) -> None:
        if lost:
            heappush(claims, _Claim(-max(missing, 0), -value[lost[0]], position, tuple(lost)))

    for position, group in enumerate(blocks):
        moves = torch.tensor(group.moves)
        lost = moves[~keep[moves]]
        best_first = lost[scores[lost].argsort(descending=True, stable=True)].tolist()
        claim(position, best_first, int(before[moves].sum()) - int(keep[moves].sum()))
    portions: list[Portion] = []
    while claims:
        best = heappop(claims)
        count = WIDTH_MULTIPLE - (len(blocks[best.position].moves) - len(best.lost)) % WIDTH_MULTIPLE
        portions.append(Portion(best.position, best.lost[:count]))
        claim(best.position, best.lost[count:], -best.missing - count)
    return portions


def _return_moves(keep: Tensor, moves: Sequence[int], scores: Tensor, limits: Limits) -> Tensor:
    """Take moves back, best first, for as long as they fit."""
    kept, value = keep.tolist(), scores.tolist()
    lost = sorted((move for move in moves if not kept[move]), key=lambda move: -value[move])
    low, high = 0, len(lost)
    best = keep
    while low < high:
        middle = (low + high + 1) // 2
        trial = keep.clone()
        trial[lost[:middle]] = True
        closed = limits.fitted(trial)
        if closed is None:
            high = middle - 1
        else:
            low, best = middle, closed
    return best
