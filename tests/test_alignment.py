"""Convolution widths in whole blocks: within the budget, close to it, and no further from the scores than needed."""

from __future__ import annotations

import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from l0compress.graph import Groups, capture, find_groups
from l0compress.training.alignment import WIDTH_MULTIPLE, align
from l0compress.training.harden import round_to_budget
from l0compress.training.limits import Limits


def widths(groups: Groups, keep: Tensor) -> dict[str, int]:
    return {group.name: int(keep[list(group.moves)].sum()) for group in groups.groups}


def aligned(groups: Groups, scores: Tensor, share: float) -> tuple[Tensor, Tensor, int]:
    """The decision before and after alignment, and the budget in MACs."""
    target = int(share * groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)).macs)
    before = round_to_budget(Limits.counted(groups, {"macs": target}), scores)
    return before.keep, align(before, scores, Limits.counted(groups, {"macs": target})), target


@pytest.fixture(scope="module")
def resnet() -> Groups:
    model, args, kwargs = models.build("ResNet-20")
    return find_groups(capture(model, args, kwargs))


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_budget_is_kept_and_used(resnet: Groups, seed: int, share: float) -> None:
    scores = torch.randn(resnet.num_moves, generator=torch.Generator().manual_seed(seed))
    before, after, target = aligned(resnet, scores, share)
    assert min(0.97 * target, resnet.cost_of(before).macs) <= resnet.cost_of(after).macs <= target
    assert torch.equal(resnet.close(after), after)


def test_widths_become_multiples_of_a_block(resnet: Groups) -> None:
    scores = torch.randn(resnet.num_moves, generator=torch.Generator().manual_seed(3))
    before, after, _ = aligned(resnet, scores, 0.5)
    odd = [width for width in widths(resnet, before).values() if width % WIDTH_MULTIPLE]
    still_odd = [width for width in widths(resnet, after).values() if width % WIDTH_MULTIPLE]
    assert len(odd) >= 6
    assert len(still_odd) <= 1


def test_within_a_width_the_best_scores_stay(resnet: Groups) -> None:
    scores = torch.randn(resnet.num_moves, generator=torch.Generator().manual_seed(4))
    _, after, _ = aligned(resnet, scores, 0.5)
    for group in resnet.groups:
        moves = torch.tensor(group.moves)
        kept = after[moves]
        if kept.any() and not kept.all():
            assert scores[moves][kept].min() > scores[moves][~kept].max()


def test_fully_connected_layers_are_left_alone() -> None:
    net = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3))
    groups = find_groups(capture(net, (torch.zeros(2, 8),)))
    before, after, _ = aligned(groups, torch.arange(float(groups.num_moves)), 0.6)
    assert after is before


def test_a_decision_that_alignment_would_starve_stays_as_it_was() -> None:
    """One convolution of 16 channels at 15/16 of the cost: 8 channels would use half of it, 16 do not fit."""
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 3))
    groups = find_groups(capture(net, (torch.zeros(2, 1, 8, 8),)))
    before, after, _ = aligned(groups, torch.arange(float(groups.num_moves)), 15.5 / 16)
    assert torch.equal(after, before)
    assert widths(groups, after) == {"0": 15}
