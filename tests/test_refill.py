"""Refilling in runs gives what adding one portion at a time gives, on budgets that a table of prices decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from l0compress.training.refill import Portion, refill

SEVERAL = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=12)


def one_by_one(keep: Tensor, portions: list[Portion], fits) -> Tensor:
    full: set[int] = set()
    for portion in portions:
        if portion.group in full:
            continue
        grown = keep.clone()
        grown[list(portion.moves)] = True
        if fits(grown):
            keep = grown
        else:
            full.add(portion.group)
    return keep


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(SEVERAL, st.lists(st.integers(1, 9), min_size=36, max_size=36), st.integers(0, 150), st.integers(0, 40))
def test_in_runs_as_one_by_one(sizes: list[tuple[int, int]], prices: list[int], room: int, fixed: int) -> None:
    portions, first = [], 0
    for group, size in sizes:
        portions.append(Portion(group, tuple(range(first, first + size))))
        first += size
    price = torch.tensor(prices)

    def fits(keep: Tensor) -> bool:
        # More than a sum: what two portions share is paid for together, as the products of two widths are.
        return int(price[keep].sum()) + fixed * int(keep[:4].any()) * int(keep[4:8].sum()) <= room

    nothing = torch.zeros(36, dtype=torch.bool)
    expected = one_by_one(nothing, portions, fits)
    assert torch.equal(refill(nothing, portions, lambda keep: keep if fits(keep) else None), expected)


def test_it_asks_a_few_times_per_group_and_not_once_per_portion() -> None:
    asked = 0

    def fitted(keep: Tensor) -> Tensor | None:
        nonlocal asked
        asked += 1
        return keep if int(keep[::2].sum()) <= 700 and int(keep[1::2].sum()) <= 100 else None

    portions = [Portion(move % 2, (move,)) for move in range(10_000)]
    kept = refill(torch.zeros(10_000, dtype=torch.bool), portions, fitted)
    assert kept[:200].all()
    assert int(kept[::2].sum()) == 700
    assert int(kept[1::2].sum()) == 100
    assert asked < 60
