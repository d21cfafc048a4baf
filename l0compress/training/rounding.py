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


def round_weights(graph: CapturedGraph, scores: Mapping[str, Tensor], *, target: int, unit: str) -> dict[str, Tensor]:
    """Keep the elements of highest score that fit the budget together; then whatever of the others still fits.

    Args:
        graph: its own zeros do not count as such: every element may be kept.
        scores: by name of each weight, of its shape.
        target: the budget, in ``unit``.

    Returns:
        By name of each weight, bool of its shape, True = keep.

    Raises:
        TargetMissedError: not even one element of each weight fits.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> graph = capture(nn.Linear(4, 2), (torch.zeros(2, 4),))
    >>> round_weights(graph, {"weight": torch.arange(8.0).view(2, 4)}, target=5, unit="params")
    {'weight': tensor([[False, False, False, False],
            [False,  True,  True,  True]])}
    """
    weights = [weight for weight in find_weights(graph) if weight.name in scores]
    ranked = _Ranked.of(weights, scores)
    whole = cost(graph).get(unit)
    if unit == "bytes":
        room = target - whole + sum(weight.numel * weight.element_bytes for weight in weights)
        chosen = _fill_bytes(ranked, weights, room)
    else:
        each = [_each(weight, unit, graph.batch_size) for weight in weights]
        room = target - whole + sum(float(costs.sum()) for costs in each)
        chosen = _fill(ranked, torch.cat(each)[ranked.order], room)
    if chosen is None:
        raise TargetMissedError(
            f"No choice of what to remove reaches {target:,} {unit}: not even one element of each of {len(weights)} "
            "weights fits.",
            fix="Ask for a larger target.",
        )
    return ranked.masks(weights, chosen)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """The elements of all weights, best first; the best one of each weight before all others.

    Attributes:
        order: int64 (elements,): positions in the concatenation of all weights.
        weight_of: int64 (elements,): the weight of each, in that order.
        forced: how many have to stay.
    """

    order: Tensor
    weight_of: Tensor
    forced: int

    @classmethod
    def of(cls, weights: list[Weight], scores: Mapping[str, Tensor]) -> _Ranked:
        flat = [scores[weight.name].detach().cpu().double().flatten() for weight in weights]
        for values in flat:
            values[int(values.argmax())] = torch.inf
        order = torch.argsort(torch.cat(flat), descending=True, stable=True)
        owners = torch.repeat_interleave(torch.arange(len(flat)), torch.tensor([len(values) for values in flat]))
        return cls(order, owners[order], len(flat))

    def masks(self, weights: list[Weight], chosen: Tensor) -> dict[str, Tensor]:
        kept = torch.zeros(len(self.order), dtype=torch.bool)
        kept[self.order[chosen]] = True
        parts = kept.split([weight.numel for weight in weights])
        return {weight.name: part.view(weight.shape) for weight, part in zip(weights, parts, strict=True)}


def _each(weight: Weight, unit: str, batch_size: int) -> Tensor:
    """float64 (numel,): what each element costs in a unit that adds up."""
    costs = torch.as_tensor(1.0 if unit == "params" else weight.macs_each(), dtype=torch.float64)
    return (costs / (1 if unit == "params" else batch_size)).expand(weight.shape).reshape(-1)


def _fill(ranked: _Ranked, costs: Tensor, room: float) -> Tensor | None:
    """bool (elements,) in order of rank: the longest run that fits, then the next that do, and so on."""
    chosen = torch.zeros(len(costs), dtype=torch.bool)
    left, start = room + 1e-6, 0
    while True:
        fitting = (costs <= left) & ~chosen
        fitting[:start] = False
        running = torch.where(fitting, costs, 0.0).cumsum(0)
        taken = fitting & (running <= left)
        if not bool(taken.any()):
            break
        first = int((fitting & ~taken).nonzero()[0]) if bool((fitting & ~taken).any()) else len(costs)
        taken[first:] = False
        chosen |= taken
        left, start = left - float(costs[taken].sum()), first
        if start == 0 or start >= len(costs):
            break
    return chosen if bool(chosen[: ranked.forced].all()) else None


def _fill_bytes(ranked: _Ranked, weights: list[Weight], room: int) -> Tensor | None:
    """bool (elements,) in order of rank: the longest run whose matrices fit, stored as they are smallest."""

    def stored(count: int) -> int:
        nonzeros = torch.bincount(ranked.weight_of[:count], minlength=len(weights)).tolist()
        return sum(weight.stored_bytes(number) for weight, number in zip(weights, nonzeros, strict=True))

    low, high = ranked.forced, len(ranked.order)
    if stored(low) > room:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if stored(middle) <= room else (low, middle - 1)
    return torch.arange(len(ranked.order)) < low
