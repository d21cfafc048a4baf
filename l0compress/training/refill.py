"""Refilling: what was removed comes back, best first, for as long as it fits the budget.

requires: a closed decision, and portions of removed moves in the order in which they are wanted back.
ensures:  a closed decision that fits, from which no portion of a group is missing that would have fitted in its turn.

Each exact cost takes a pass over the whole graph. So portions return in runs: twice as many at a time while they fit,
and where a run does not fit, its longest part that does is found by bisection. With little room left that takes a few
passes per group, and not one per portion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Portion:
    """Moves of one group that return together."""

    group: int
    moves: tuple[int, ...]


def refill(keep: Tensor, portions: Sequence[Portion], fitted: Callable[[Tensor], Tensor | None]) -> Tensor:
    """Return portions to ``keep``, in order. A group is done with its first portion that does not fit.

    Args:
        keep: bool (num_moves,), closed.
        fitted: closes a decision; None where it does not fit. What fits has to fit with less in it, too.

    Examples:
        >>> import torch
        >>> most_three = lambda keep: keep if int(keep.sum()) <= 3 else None
        >>> nothing = torch.zeros(5, dtype=torch.bool)
        >>> refill(nothing, [Portion(0, (4,)), Portion(1, (0, 1, 2)), Portion(0, (3,))], most_three)
        tensor([False, False, False,  True,  True])
    """
    waiting = [portion for portion in portions if not all(keep[list(portion.moves)].tolist())]
    run = 1
    while waiting:
        run = min(run, len(waiting))
        grown = fitted(_with(keep, waiting[:run]))
        if grown is not None:
            keep, waiting, run = grown, waiting[run:], 2 * run
            continue
        count, keep = _longest(keep, waiting[:run], fitted)
        full = waiting[count].group
        waiting, run = [portion for portion in waiting[count:] if portion.group != full], 1
    return keep


def _longest(
    keep: Tensor, portions: Sequence[Portion], fitted: Callable[[Tensor], Tensor | None]
) -> tuple[int, Tensor]:
    """How many of the first portions fit, where all of them do not, and the decision with them."""
    low, high = 0, len(portions)
    while high - low > 1:
        middle = (low + high) // 2
        grown = fitted(_with(keep, portions[low:middle]))
        low, high, keep = (low, middle, keep) if grown is None else (middle, high, grown)
    return low, keep


def _with(keep: Tensor, portions: Sequence[Portion]) -> Tensor:
    grown = keep.clone()
    grown[[move for portion in portions for move in portion.moves]] = True
    return grown
