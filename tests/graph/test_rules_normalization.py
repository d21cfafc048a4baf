"""Normalisations that work inside groups of channels, and activations with a weight a channel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import captured, grouped, image, tokens, vector, worst_error
from rulechecks import check
from torch import Tensor, nn

from l0compress.graph import KeepPlan, find_groups, shrink


def between(s: nn.Module, x: Tensor) -> Tensor:
    return s.b(F.gelu(s.n(s.a(x)))).flatten(2).mean(2)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("count, moves", [(2, 2), (4, 4), (8, 8)])
def test_the_channels_of_a_norm_group_go_together(tmp_path: Path, count: int, moves: int, affine: bool) -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "n": nn.GroupNorm(count, 8, affine=affine), "b": nn.Conv2d(8, 4, 1)}
    check(between, image(), {"a channels": moves}, onnx=tmp_path, **layers)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("norm", [nn.RMSNorm(8), nn.RMSNorm(8, eps=0.1), nn.RMSNorm(8, elementwise_affine=False)])
def test_a_mean_of_squares_keeps_the_dense_count(tmp_path: Path, norm: nn.Module) -> None:
    layers = {"a": nn.Linear(12, 8), "n": norm, "b": nn.Linear(8, 3)}
    check(lambda s, x: s.b(s.n(s.a(x))), tokens(), {"a channels": 8, "a inputs": 12}, onnx=tmp_path, **layers)


def test_what_was_cut_once_can_be_cut_again() -> None:
    layers = {"a": nn.Linear(12, 8), "n": nn.RMSNorm(8, eps=0.1), "b": nn.Linear(8, 3)}
    graph = captured(lambda s, x: s.b(s.n(s.a(x))), tokens(), **layers)
    once = KeepPlan.from_kept(find_groups(graph), {"a channels": [0, 2, 3, 5, 7]})
    small = shrink(graph, once)
    again = KeepPlan.from_kept(find_groups(small), {"a channels": [1, 2]})
    both = KeepPlan.from_kept(find_groups(graph), {"a channels": [2, 3]})
    assert worst_error(small, again) <= 1e-10
    (x,) = graph.example_args
    assert torch.allclose(shrink(small, again).module()(x), shrink(graph, both).module()(x), rtol=1e-10)


def test_norm_groups_joined_with_others() -> None:
    """Groups that straddle a concatenation unite channels of both sides."""

    def joined(s: nn.Module, x: Tensor) -> Tensor:
        return s.b(F.gelu(s.n(F.pad(s.a(x), (0, 0, 0, 0, 2, 0))))).flatten(2).mean(2)

    layers = {"a": nn.Conv2d(3, 6, 1), "n": nn.GroupNorm(2, 8), "b": nn.Conv2d(8, 4, 1)}
    check(joined, image(), {"a channels": 2}, **layers)


def test_group_norm_of_features() -> None:
    layers = {"a": nn.Linear(6, 8), "n": nn.GroupNorm(4, 8), "b": nn.Linear(8, 3)}
    check(lambda s, x: s.b(F.gelu(s.n(s.a(x)))), vector(), {"a channels": 4, "a inputs": 6}, **layers)


INSTANCE = {
    "bare": nn.InstanceNorm2d(8),
    "affine": nn.InstanceNorm2d(8, affine=True),
    "tracked": nn.InstanceNorm2d(8, track_running_stats=True),
    "both": nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
}


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", INSTANCE)
def test_instance_norm(tmp_path: Path, name: str) -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "n": INSTANCE[name], "b": nn.Conv2d(8, 4, 1)}
    check(between, image(), {"a channels": 8}, onnx=tmp_path, **layers)


def test_instance_norm_over_one_dimension() -> None:
    layers = {"a": nn.Conv1d(5, 8, 1), "n": nn.InstanceNorm1d(8, affine=True), "b": nn.Conv1d(8, 4, 1)}
    check(between, tokens(), {"a channels": 8}, **layers)


def test_the_running_statistics_train() -> None:
    """``train()`` reaches the flag of a tracked instance norm and leaves the untracked one alone."""
    for layer, moves in ((nn.InstanceNorm2d(4, track_running_stats=True), True), (nn.InstanceNorm2d(4), False)):
        network = grouped(between, image(), a=nn.Conv2d(3, 4, 1), n=layer, b=nn.Conv2d(4, 4, 1)).graph.module()
        before = {name: tensor.clone() for name, tensor in network.named_buffers()}
        network.train()(image().double())
        assert any(not tensor.equal(before[name]) for name, tensor in network.named_buffers()) is moves


@pytest.mark.parametrize("slopes", [1, 8])
def test_slopes(tmp_path: Path, slopes: int) -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "n": nn.PReLU(slopes), "b": nn.Conv2d(8, 4, 1)}
    check(lambda s, x: s.b(s.n(s.a(x))).flatten(2).mean(2), image(), {"a channels": 8}, onnx=tmp_path, **layers)


def test_a_slope_a_channel_of_features() -> None:
    layers = {"a": nn.Linear(6, 8), "n": nn.PReLU(8), "b": nn.Linear(8, 3)}
    check(lambda s, x: s.b(s.n(s.a(x))), vector(), {"a channels": 8, "a inputs": 6}, **layers)


def test_slopes_belong_to_the_second_dimension() -> None:
    """Along the last one, as a broadcast would have it, the slopes would be wrong."""
    layers = {"a": nn.Linear(12, 5), "n": nn.PReLU(5), "b": nn.Linear(5, 3)}
    check(lambda s, x: s.b(s.n(s.a(x))), tokens(), {"a channels": 5, "a inputs": 12}, **layers)
