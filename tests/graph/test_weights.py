"""Which parameters may be sparse, how often each element is used, and what zeros save: against counting by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import ZOO, build, randomise
from torch import Tensor, nn
from torch.nn import functional as F

from l0compress.graph import CapturedGraph, Cost, capture, cost, find_weights, nonzero_cost


def captured(model: nn.Module, *args: Any) -> CapturedGraph:
    return capture(randomise(model), args)


def macs_each(graph: CapturedGraph) -> dict[str, Any]:
    """Multiply-accumulates a sample that a zero in each weight saves."""
    return {weight.name: weight.macs_each() / graph.batch_size for weight in find_weights(graph)}


class Tied(nn.Module):
    """An embedding whose table is also the last layer, and a position table that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.positions = nn.Parameter(torch.zeros(1, 5, 6))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.table(tokens) + self.positions))


class Halves(nn.Module):
    """One parameter of which the first rows meet all positions and the others only the first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        everywhere, once = self.weight.split([2, 4])
        return F.linear(x, everywhere).sum(1) + F.linear(x[:, 0], once).sum(1, keepdim=True)


def test_a_linear_weight_is_used_once_a_position():
    assert macs_each(captured(nn.Linear(4, 3), torch.zeros(2, 7, 4))) == {"weight": 7}


@pytest.mark.parametrize(
    ("layer", "shape", "positions"),
    [
        (nn.Conv1d(4, 6, 3), (2, 4, 9), 7),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 8, 8), 16),
        (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4), 27),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5), 25),
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 6, 6), 16),
    ],
)
def test_a_kernel_is_used_once_a_position_that_it_stands_at(layer, shape, positions):
    assert macs_each(captured(layer, torch.zeros(shape))) == {"weight": positions}


def test_recurrent_weights_are_used_at_every_step_of_the_sequence():
    found = macs_each(captured(nn.LSTM(4, 6, num_layers=2, batch_first=True, proj_size=3), torch.zeros(2, 5, 4)))
    assert len(found) == 6 and set(found.values()) == {5}


@pytest.mark.slow
def test_attention_projections_count_for_the_rows_that_each_sequence_meets():
    """Two sequences of different length meet different rows of one projection."""
    graph = captured(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), torch.zeros(2, 5, 8), torch.zeros(2, 7, 8))
    found = macs_each(graph)
    assert found["self_attn.in_proj_weight"] == 5
    cross = found["multihead_attn.in_proj_weight"]
    assert bool((cross[:8] == 5).all()) and bool((cross[8:] == 7).all())


def test_parts_of_a_parameter_count_as_often_as_each_is_read():
    each = macs_each(captured(Halves(), torch.zeros(2, 3, 4)))["weight"]
    assert bool((each[:2] == 3).all()) and bool((each[2:] == 1).all())


def test_tied_parameters_are_one_weight_and_what_is_added_is_none():
    (weight,) = find_weights(captured(Tied(), torch.zeros(2, 5, dtype=torch.long)))
    assert weight.shape == (11, 6)
    assert weight.macs_each() == 2 * 5  # the look-up multiplies nothing


def test_a_look_up_costs_no_products():
    assert macs_each(captured(nn.Embedding(9, 4), torch.zeros(2, 5, dtype=torch.long))) == {"weight": 0}


def test_biases_norms_and_scales_are_no_weights():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.scale = nn.Parameter(torch.zeros(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * self.scale

    assert [weight.name for weight in find_weights(captured(Scaled(), torch.zeros(2, 3, 4, 4)))] == ["conv.weight"]


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ZOO)
def test_without_zeros_the_nonzero_cost_is_the_cost(name):
    model, args, kwargs = build(name)
    graph = capture(model, args, kwargs)
    assert nonzero_cost(graph) == cost(graph)


def test_zeros_cost_nothing_and_biases_count_even_if_they_are_zero():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 2)))
    with torch.no_grad():
        model[0].weight[1:] = 0
        model[0].bias.zero_()
        model[3].weight[0, :10] = 0
    found = nonzero_cost(capture(model, (torch.zeros(2, 3, 6, 6),)))
    kernel, last = 27, 2 * 64 - 10
    assert found.params == kernel + 4 + last + 2
    assert found.macs == 16 * kernel + last
    # A CSR matrix of the kernel is smaller than the dense one, one of the last layer is not.
    assert found.bytes == (8 * kernel + 4 * 5) + 4 * 4 + 4 * (128 + 2)


def test_nonzeros_of_float64_weights_take_eight_bytes_and_an_index():
    layer = nn.Linear(10, 10, bias=False).double()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[3, 4] = 1.0
    found = nonzero_cost(capture(layer, (torch.zeros(2, 10, dtype=torch.float64),)))
    assert found == Cost(params=1, macs=1, bytes=8 + 4 + 4 * 11)
