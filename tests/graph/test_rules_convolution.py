"""Transposed convolutions: the weight's rows read, its columns produce."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import image, vector
from rulechecks import check
from torch import Tensor, nn

from l0compress.graph import capture, cost, find_groups

LAYERS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def upsampled(s: nn.Module, x: Tensor) -> Tensor:
    return s.h(F.gelu(s.t(F.gelu(s.a(x)))).flatten(2).mean(2))


def positions(dims: int) -> Tensor:
    return torch.randn(2, 3, *[3] * dims, generator=torch.Generator().manual_seed(1))


def first(dims: int) -> nn.Module:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](3, 8, 1)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("dims", LAYERS)
def test_plain(tmp_path: Path, dims: int) -> None:
    layers = {"a": first(dims), "t": LAYERS[dims](8, 6, 3, 2, 1, 1), "h": nn.Linear(6, 4)}
    check(upsampled, positions(dims), {"a channels": 8, "t channels": 6}, onnx=tmp_path, **layers)


def test_without_bias() -> None:
    layers = {"a": first(2), "t": nn.ConvTranspose2d(8, 6, 3, 2, bias=False), "h": nn.Linear(6, 4)}
    check(upsampled, positions(2), {"a channels": 8, "t channels": 6}, **layers)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("dims", LAYERS)
def test_grouped(tmp_path: Path, dims: int) -> None:
    """Whole groups go; inside them, inputs and outputs go at the same place of every group."""
    layers = {"a": first(dims), "t": LAYERS[dims](8, 12, 2, 2, groups=4), "h": nn.Linear(12, 4)}
    expected = {"a blocks": 4, "a width": 2, "t width": 3}
    check(upsampled, positions(dims), expected, onnx=tmp_path, **layers)


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise(multiplier: int) -> None:
    layers = {
        "a": first(2),
        "t": nn.ConvTranspose2d(8, 8 * multiplier, 2, 2, groups=8),
        "h": nn.Linear(8 * multiplier, 4),
    }
    expected = {"a channels": 8} if multiplier == 1 else {"a blocks": 8, "t width": 3}
    check(upsampled, positions(2), expected, **layers)


def test_the_columns_that_read_the_input_stay() -> None:
    layer = nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.GELU(), nn.Conv2d(8, 4, 1))
    groups = find_groups(capture(layer, (image(),)))
    assert [(place.where, place.dim) for place in groups.frozen if place.where == "0.weight"] == [("0.weight", 0)]


@pytest.mark.parametrize(
    "layer, macs",
    [(nn.ConvTranspose2d(3, 6, 3, 2), 3 * 64 * 6 * 9), (nn.ConvTranspose2d(3, 6, 2, 2, groups=3), 3 * 64 * 2 * 4)],
)
def test_every_input_meets_every_weight_of_its_row_once(layer: nn.Module, macs: int) -> None:
    assert cost(capture(layer, (image(),))).macs == macs


def test_an_image_that_a_linear_layer_makes_loses_whole_channels() -> None:
    """Its channels vary over positions too, but a convolution slides over those."""
    check(
        lambda s, x: s.h(F.gelu(s.c(F.gelu(s.a(x)).unflatten(1, (4, 3, 3)))).flatten(2).mean(2)),
        vector(),
        {"a blocks": 4, "a inputs": 6, "c channels": 5},
        a=nn.Linear(6, 36),
        c=nn.Conv2d(4, 5, 2),
        h=nn.Linear(5, 3),
    )
