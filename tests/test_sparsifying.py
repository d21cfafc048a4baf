"""What makes networks sparse while they are trained, against what can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clouds import QUICK
from torch import Tensor, nn

from l0compress.data import Data, Split
from l0compress.gates.attach import attach
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.groups import find_groups, groups_without_moves
from l0compress.training.limits import Limits
from l0compress.training.methods.factors import Factors, WeightMask, factors_of, masks_of
from l0compress.training.methods.gradual import ClosingMoves, ClosingWeights
from l0compress.training.methods.pressure import MOVES, Pressed
from l0compress.training.problem import Problem, problem_of

SETTINGS = replace(
    QUICK, epochs=2, method="gradual-magnitude", loss="mse", gates=replace(QUICK.gates, share=0.5, ramp_share=1.0)
)


def network(*rows: tuple[float, float]) -> CapturedGraph:
    """As many hidden units as rows: what each reads its one input with, and what the output reads it with."""
    net = nn.Sequential(nn.Linear(1, len(rows), bias=False), nn.Linear(len(rows), 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[into] for into, _ in rows]))
        net[1].weight.copy_(torch.tensor([[out for _, out in rows]]))
    return capture(net, (torch.zeros(2, 1),))


def problem(graph: CapturedGraph, granularity: str = "structured", target: float = 1.0) -> Problem:
    part = Split((torch.ones(64, 1),), torch.full((64, 1), target))
    return problem_of(graph, Data(part, part), replace(SETTINGS, granularity=granularity))


def moves_of(graph: CapturedGraph, most: int) -> Pressed:
    groups = find_groups(graph)
    network = attach(groups, Factors(groups.num_moves)).train()
    return Pressed(network, Limits.counted(groups, {"params": most}), problem(graph))


def weights_of(graph: CapturedGraph, most: int) -> Pressed:
    groups = groups_without_moves(graph)
    masks = {name: WeightMask(tuple(tensor.shape)) for name, tensor in graph.state().items()}
    network = attach(groups, Factors(0), masks).train()
    return Pressed(network, Limits.counted(groups, {"params": most}), problem(graph, "weights"))


def set_(pressed: Pressed, name: str, *values: float) -> None:
    with torch.no_grad():
        weight = pressed.network.weights()[name]
        weight.copy_(torch.tensor(values).view(weight.shape))


def loss(pressed: Pressed, x: float = 1.0, target: float = 1.0) -> Tensor:
    return (pressed.network(torch.full((1, 1), x)) - target).square().mean()


class TestPressed:
    def test_the_bounds_in_force_fall_cubically_from_the_dense_cost_to_the_limit(self):
        pressed = weights_of(network(*[(1.0, 1.0)] * 50), 20)  # 100 parameters
        assert [pressed.most_at(progress) for progress in (0.0, 0.5, 1.0)] == [(100,), (30,), (20,)]
        assert pressed.share_at(0.5) == 0.3

    def test_they_are_there_when_the_ramp_is_over(self):
        pressed = weights_of(network(*[(1.0, 1.0)] * 50), 20)
        short = replace(pressed.problem.settings, gates=replace(SETTINGS.gates, ramp_share=0.5))
        pressed = replace(pressed, problem=replace(pressed.problem, settings=short))
        assert [pressed.most_at(progress) for progress in (0.25, 0.5, 0.75)] == [(30,), (20,), (20,)]


class TestGradualMagnitude:
    def test_the_units_of_smallest_norm_close_and_come_back_when_others_are_smaller(self):
        pressed = moves_of(network((3.0, 0.0), (1.0, 0.0), (2.0, 0.0), (4.0, 0.0)), 4)  # 2 parameters a unit
        closing = ClosingMoves(pressed)
        closing.step_(1.0)
        assert factors_of(pressed.network).value.tolist() == [1.0, 0.0, 0.0, 1.0]
        assert pressed.network.weights()["0.weight"].flatten().tolist() == [3.0, 1.0, 2.0, 4.0]  # as they were
        set_(pressed, "0.weight", 0.5, 1.0, 2.0, 4.0)
        closing.step_(1.0)
        assert factors_of(pressed.network).value.tolist() == [0.0, 0.0, 1.0, 1.0]

    def test_half_way_only_an_eighth_of_what_has_to_go_is_still_there(self):
        graph = network(*[(float(unit), 0.0) for unit in range(1, 17)])  # 32 parameters, of which 16 go
        pressed = moves_of(graph, 16)
        ClosingMoves(pressed).step_(0.5)
        assert pressed.most_at(0.5) == (18,)
        assert factors_of(pressed.network).value.tolist() == [0.0] * 7 + [1.0] * 9

    def test_what_is_closed_gets_no_gradient(self):
        pressed = moves_of(network((3.0, 1.0), (1.0, 1.0)), 2)
        ClosingMoves(pressed).step_(1.0)
        loss(pressed).backward()
        assert pressed.network.weights()["0.weight"].grad[:, 0].tolist() == [2 * (3 - 1) * 1.0, 0.0]

    def test_the_smallest_weights_are_masked_whatever_layer_they_are_in_and_keep_their_values(self):
        pressed = weights_of(network((3.0, 0.1), (0.2, 2.0)), 2)
        closing = ClosingWeights(pressed)
        closing.step_(1.0)
        masks = masks_of(pressed.network)
        assert {name: mask.keep.flatten().tolist() for name, mask in masks.items()} == {
            "0.weight": [True, False],
            "1.weight": [False, True],
        }
        assert pressed.network(torch.ones(1, 1)).item() == 0.0  # 3 * 0 + 0 * 2
        set_(pressed, "0.weight", 0.1, 0.2)
        closing.step_(1.0)
        assert masks["0.weight"].keep.flatten().tolist() == [False, True]
        assert pressed.network(torch.ones(1, 1)).item() == pytest.approx(0.2 * 2.0)

    def test_its_scores_are_the_norms_of_what_is_removed_now(self):
        pressed = moves_of(network((3.0, 4.0), (0.0, 1.0)), 2)
        assert ClosingMoves(pressed).scores()[MOVES].tolist() == pytest.approx([5 / 3, 1 / 3])  # over their mean
