"""Rounding scores of single weights to an exact integer budget.

requires: a graph, and a score for each element of its weights.
ensures:  masks under which :func:`~l0compress.graph.nonzero_cost` is at most the target, and in parameters equal to it
          where there are as many weights; every weight keeps its best element.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.errors import TargetMissedError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.weights import Weight, find_weights

_BYTES = "bytes"  # the one unit in which the elements of a weight do not add up


def round_weights(graph: CapturedGraph, scores: Mapping[str, Tensor], most: Mapping[str, int]) -> dict[str, Tensor]:
    """Keep the elements of highest score that fit every limit together; then whatever of the others still fits.

    Args:
        graph: its own zeros do not count as such: every element may be kept.
        scores: by name of each weight, of its shape.
        most: the limits by unit, of :func:`~l0compress.graph.nonzero_cost`.

    Returns:
        By name of each weight, bool of its shape, True = keep.

    Raises:
        TargetMissedError: not even one element of each weight fits.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> graph = capture(nn.Linear(4, 2), (torch.zeros(2, 4),))
    >>> round_weights(graph, {"weight": torch.arange(8.0).view(2, 4)}, {"params": 5})
    {'weight': tensor([[False, False, False, False],
            [False,  True,  True,  True]])}
    """
    weights = [weight for weight in find_weights(graph) if weight.name in scores]
    ranked = _Ranked.of(weights, scores, [graph.protection.least_of(w.name, w.numel) for w in weights])
    whole = cost(graph)
    added = {unit: [_each(weight, unit, graph.batch_size) for weight in weights] for unit in most if unit != _BYTES}
    rooms = [most[unit] - whole.get(unit) + sum(float(costs.sum()) for costs in each) for unit, each in added.items()]
    chosen = _fill([torch.cat(each)[ranked.order] for each in added.values()], rooms, len(ranked.order))
    if _BYTES in most:
        room = most[_BYTES] - whole.bytes + sum(weight.numel * weight.element_bytes for weight in weights)
        chosen = _within_bytes(chosen, ranked, weights, room)
    if not bool(chosen[: ranked.forced].all()):
        what = "one element" if ranked.forced == len(weights) else "what has to stay"
        wanted = " and ".join(f"{number:,} {unit}" for unit, number in most.items())
        raise TargetMissedError(
            f"No choice of what to remove reaches {wanted}: not even {what} of each of {len(weights)} weights fits.",
            fix="Ask for a larger target.",
        )
    return ranked.masks(weights, chosen)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """The elements of all weights, best first; those of each weight that have to stay before all others.

    Attributes:
        order: int64 (elements,): positions in the concatenation of all weights.
        weight_of: int64 (elements,): the weight of each, in that order.
        forced: how many have to stay.
    """

    order: Tensor
    weight_of: Tensor
    forced: int

    @classmethod
    def of(cls, weights: list[Weight], scores: Mapping[str, Tensor], least: list[int]) -> _Ranked:
        flat = [scores[weight.name].detach().cpu().double().flatten() for weight in weights]
        for values, count in zip(flat, least, strict=True):
            best = values.argmax().view(1) if count == 1 else values.argsort(descending=True, stable=True)[:count]
            values[best] = torch.inf
        order = torch.argsort(torch.cat(flat), descending=True, stable=True)
        owners = torch.repeat_interleave(torch.arange(len(flat)), torch.tensor([len(values) for values in flat]))
        return cls(order, owners[order], sum(least))

    def masks(self, weights: list[Weight], chosen: Tensor) -> dict[str, Tensor]:
        kept = torch.zeros(len(self.order), dtype=torch.bool)
        kept[self.order[chosen]] = True
        parts = kept.split([weight.numel for weight in weights])
        return {weight.name: part.view(weight.shape) for weight, part in zip(weights, parts, strict=True)}


def _each(weight: Weight, unit: str, batch_size: int) -> Tensor:
    """float64 (numel,): what each element costs in a unit that adds up."""
    costs = torch.as_tensor(1.0 if unit == "params" else weight.macs_each(), dtype=torch.float64)
    return (costs / (1 if unit == "params" else batch_size)).expand(weight.shape).reshape(-1)


def _fill(costs: list[Tensor], rooms: list[float], count: int) -> Tensor:
    """bool (count,): of elements best first, the longest run that fits, then the next that do, and so on.

    Args:
        costs: float64 (count,), for each limit.
        rooms: how much there is to fill of each.
    """
    chosen, left, start = torch.zeros(count, dtype=torch.bool), [room + 1e-6 for room in rooms], 0
    while True:
        fitting = ~chosen
        for each, room in zip(costs, left, strict=True):
            fitting &= each <= room
        fitting[:start] = False
        taken = fitting.clone()
        for each, room in zip(costs, left, strict=True):
            taken &= torch.where(fitting, each, 0.0).cumsum(0) <= room
        if not bool(taken.any()):
            return chosen
        first = int((fitting & ~taken).nonzero()[0]) if bool((fitting & ~taken).any()) else count
        taken[first:] = False
        chosen |= taken
        left = [room - float(each[taken].sum()) for each, room in zip(costs, left, strict=True)]
        start = first
        if start == 0 or start >= count:
            return chosen


def _within_bytes(chosen: Tensor, ranked: _Ranked, weights: list[Weight], room: int) -> Tensor:
    """The longest run of what is chosen, best first, whose matrices fit, stored as they are smallest."""
    order = chosen.nonzero().flatten()

    def stored(count: int) -> int:
        nonzeros = torch.bincount(ranked.weight_of[order[:count]], minlength=len(weights)).tolist()
        return sum(weight.stored_bytes(number) for weight, number in zip(weights, nonzeros, strict=True))

    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if stored(middle) <= room else (low, middle - 1)
    within = torch.zeros_like(chosen)
    within[order[:low]] = True
    return within
