"""Alignment: convolution widths in whole vector blocks, since kernels compute the odd channels of a block anyway.

requires: a decision that fits the budget, and the scores that it was made by.
ensures:  a decision that fits too, in which convolution widths are multiples of a block wherever the budget still ends
          above 97 % used; the last width that is filled may be odd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from l0compress.errors import PlanError
from l0compress.graph.groups import Groups
from l0compress.graph.naming import Group

WIDTH_MULTIPLE = 8
CLOSE_ENOUGH = 0.97


def align(groups: Groups, keep: Tensor, scores: Tensor, *, cost: Callable[[Tensor], int], target: int) -> Tensor:
    """Round convolution widths to multiples of :data:`WIDTH_MULTIPLE` under a budget.

    Every width is rounded down first; then blocks return, to the widths that lost most of theirs before any others, and
    by score among equals. What room is left goes to other layers, and only then to odd channels of one convolution.

    Args:
        keep: bool (num_moves,), closed, with ``cost(keep) <= target``.
        scores: float (num_moves,): higher stays.
        cost: the cost of a closed keep mask.
        target: the budget, in the unit of ``cost``.

    Returns:
        bool (num_moves,), closed, within ``target``; ``keep`` itself where alignment would use less than 97 % of it.
    """
    blocks = [group for group in groups.groups if _is_aligned_kind(groups, group)]
    if not blocks:
        return keep
    widths = {group.name: int(keep[list(group.moves)].sum()) for group in blocks}
    trial = keep.clone()
    for group in blocks:
        trial = _with_width(trial, group, scores, _floor(widths[group.name]))
    fitting = _Fitting(groups, cost, target)
    chosen = fitting.closed(trial)
    if chosen is None:
        return keep
    chosen = _return_blocks(chosen, blocks, scores, widths, fitting)
    others = [move for group in groups.groups if group not in blocks for move in group.moves]
    chosen = _return_moves(chosen, others, scores, fitting)
    for group in sorted(blocks, key=lambda group: group.macs / len(group.moves)):
        if cost(chosen) > CLOSE_ENOUGH * target:
            break
        chosen = _return_moves(chosen, group.moves, scores, fitting)
    return chosen if cost(chosen) > min(CLOSE_ENOUGH * target, cost(keep) - 1) else keep


def _is_aligned_kind(groups: Groups, group: Group) -> bool:
    """Plain channels of a convolution, at least two blocks of them."""
    names = [place.rpartition(":")[0] for place in group.where]
    kernels = any(len(groups.labelled.parameters[name].shape) > 2 for name in names)
    return kernels and group.kind == "channels" and len(group.moves) >= 2 * WIDTH_MULTIPLE


def _floor(width: int) -> int:
    """The largest multiple of a block that is no wider; a width below one block stays as it is."""
    return width if width < WIDTH_MULTIPLE else width - width % WIDTH_MULTIPLE


def _with_width(keep: Tensor, group: Group, scores: Tensor, width: int) -> Tensor:
    """The same decision with the ``width`` best moves of a group, those that were kept before any others."""
    moves = torch.tensor(group.moves)
    preferred = scores[moves] + keep[moves] * (scores.max() - scores.min() + 1)
    changed = keep.clone()
    changed[moves] = False
    changed[moves[preferred.argsort(descending=True, stable=True)[:width]]] = True
    return changed


class _Fitting:
    """Closes a decision and says whether it fits."""

    def __init__(self, groups: Groups, cost: Callable[[Tensor], int], target: int) -> None:
        self.groups, self.cost, self.target = groups, cost, target

    def closed(self, keep: Tensor) -> Tensor | None:
        """The closed decision, None where it does not fit or would empty a layer."""
        try:
            closed = self.groups.close(keep)
        except PlanError:
            return None
        return closed if self.cost(closed) <= self.target else None


def _return_blocks(
    keep: Tensor, blocks: Sequence[Group], scores: Tensor, widths: dict[str, int], fitting: _Fitting
) -> Tensor:
    waiting = list(blocks)
    while waiting:
        group = max(waiting, key=lambda group: _claim(group, keep, scores, widths[group.name]))
        width = int(keep[list(group.moves)].sum())
        wider = min(width - width % WIDTH_MULTIPLE + WIDTH_MULTIPLE, len(group.moves))
        grown = fitting.closed(_with_width(keep, group, scores, wider)) if wider > width else None
        if grown is None:
            waiting.remove(group)
        else:
            keep = grown
    return keep


def _claim(group: Group, keep: Tensor, scores: Tensor, width: int) -> tuple[float, float]:
    """How much of its width a group still misses, and how good the best move is that it has lost."""
    moves = torch.tensor(group.moves)
    lost = moves[~keep[moves]]
    missing = max(width - (len(moves) - len(lost)), 0)
    return missing / WIDTH_MULTIPLE, float(scores[lost].max()) if len(lost) else float("-inf")


def _return_moves(keep: Tensor, moves: Sequence[int], scores: Tensor, fitting: _Fitting) -> Tensor:
    """Take moves back, best first, for as long as they fit."""
    lost = sorted((move for move in moves if not keep[move]), key=lambda move: -float(scores[move]))
    low, high = 0, len(lost)
    best = keep
    while low < high:
        middle = (low + high + 1) // 2
        trial = keep.clone()
        trial[lost[:middle]] = True
        closed = fitting.closed(trial)
        if closed is None:
            high = middle - 1
        else:
            low, best = middle, closed
    return best
