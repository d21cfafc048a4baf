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
from l0compress.training.methods.group_lasso import GroupLassoPressure
from l0compress.training.methods.l1 import FactorL1, WeightL1
from l0compress.training.methods.pressure import MOVES, Pressed
from l0compress.training.methods.proximal import HardThresholdMoves, HardThresholdWeights, proximal_score
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


class TestNorms:
    def test_the_group_lasso_is_the_norms_of_units_times_the_roots_of_their_sizes(self):
        pressed = moves_of(network((3.0, 4.0), (0.0, -2.0)), 2)
        lasso = GroupLassoPressure(pressed)
        assert lasso.norm().item() == pytest.approx(2**0.5 * (5 + 2))
        lasso.norm().backward()
        slopes = [pressed.network.weights()[f"{layer}.weight"].grad.flatten().tolist() for layer in (0, 1)]
        assert slopes == [pytest.approx([2**0.5 * 3 / 5, 0.0]), pytest.approx([2**0.5 * 4 / 5, -(2**0.5)])]
        assert lasso.scores()[MOVES].tolist() == pytest.approx([5 / 2**0.5, 2 / 2**0.5])

    def test_the_lasso_s_slope_is_the_same_however_small_a_group_is(self):
        pressed = moves_of(network((3e-4, 4e-4), (3.0, 4.0)), 2)
        GroupLassoPressure(pressed).norm().backward()
        assert pressed.network.weights()["0.weight"].grad.flatten().tolist() == pytest.approx(
            [2**0.5 * 3 / 5] * 2, rel=1e-4
        )

    def test_the_norm_joins_the_loss_as_soon_as_it_is_above_its_target(self):
        pressed = weights_of(network((3.0, 1.0), (2.0, 2.0)), 2)
        l1 = WeightL1(pressed)
        assert l1.norm().item() == 8.0
        assert l1.regularized(torch.tensor(0.7)).item() == pytest.approx(0.7)
        l1.step_(1.0)  # the target is half of it from here on
        assert l1.report(1.0)["violation"] == pytest.approx(torch.tensor(2.0).log().item())
        l1.regularized(torch.tensor(0.0))
        l1.step_(1.0)
        found = l1.regularized(torch.tensor(0.0))
        assert l1.report(1.0)["multiplier"] > 0
        (slope,) = torch.autograd.grad(found, pressed.network.weights()["0.weight"])
        assert slope.flatten().tolist() == pytest.approx([l1.report(1.0)["multiplier"] / 8] * 2)

    def test_l1_of_weights_ends_where_soft_thresholding_does(self):
        # min sum (w_i - a_i)^2 subject to sum |w_i| <= 2: every a_i = (3, -2, 1) comes 1.5 nearer to 0.
        net, wanted = nn.Linear(3, 1, bias=False), torch.tensor([[3.0, -2.0, 1.0]])
        with torch.no_grad():
            net.weight.copy_(wanted)
        part = Split((torch.ones(64, 3),), torch.ones(64, 1))
        graph = capture(net, (torch.zeros(2, 3),))
        groups = groups_without_moves(graph)
        long = problem_of(graph, Data(part, part), replace(SETTINGS, granularity="weights", batch_size=2))
        gated = attach(groups, Factors(0), {"weight": WeightMask((1, 3))}).train()
        l1 = WeightL1(Pressed(gated, Limits.counted(groups, {"params": 1}), long))
        weight, found = gated.weights()["weight"], []
        optimizer = torch.optim.SGD([weight], lr=0.01)
        for _ in range(1500):
            optimizer.zero_grad()
            l1.regularized((weight - wanted).square().sum()).backward()
            optimizer.step()
            l1.step_(1.0)
            found.append(weight.detach().clone())
        # The multiplier goes up and down about where it should be, and the weights with it.
        assert torch.cat(found[-500:]).mean(0).tolist() == pytest.approx([1.5, -0.5, 0.0], abs=0.2)
        assert min(float(each.abs().sum()) for each in found[-500:]) <= 2.0

    def test_l1_of_moves_is_on_factors_that_never_become_negative(self):
        pressed = moves_of(network((3.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)), 2)
        l1 = FactorL1(pressed)
        assert l1.norm().item() == 4.0
        with torch.no_grad():
            l1.learned()[MOVES].copy_(torch.tensor([0.9, -0.2, 0.4, 0.0]))
        l1.step_(1.0)
        assert l1.scores()[MOVES].tolist() == pytest.approx([0.9, 0.0, 0.4, 0.0])
        # What a unit is multiplied with is its factor.
        assert pressed.network(torch.ones(1, 1)).item() == pytest.approx(0.9 * 3 + 0.4)


class TestProximal:
    def test_the_score_is_the_loss_of_the_quadratic_model_between_zero_and_its_minimum(self):
        x, g, h = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 0.5, -3.0]), torch.tensor([4.0, 2.0, 6.0])
        minimum = x - g / h
        assert torch.allclose(proximal_score(x, g, h), h * minimum.square())

    def test_all_but_the_best_become_zero_after_a_step_and_lose_their_values(self):
        pressed = weights_of(network((3.0, 0.1), (0.2, 2.0)), 2)
        threshold = HardThresholdWeights(pressed)
        loss(pressed, target=0.0).backward()  # 0.3 + 0.4 = 0.7; gradients 1.4 * (0.1, 2.0) and 1.4 * (3.0, 0.2)
        threshold.before_step_()
        gradients = torch.tensor([0.14, 2.8, 4.2, 0.28])
        x, size = torch.tensor([3.0, 0.2, 0.1, 2.0]), pressed.problem.batch_size
        scores = proximal_score(x, gradients, gradients.square() * size)
        found = torch.cat([each.flatten() for each in threshold.scores().values()])
        assert torch.allclose(found / found.sum(), scores / scores.sum(), rtol=1e-4)
        threshold.step_(1.0)
        left = torch.cat([threshold.values()[name].detach().flatten() for name in ("0.weight", "1.weight")])
        best = [each.argmax().item() for each in scores.view(2, 2)]  # each layer keeps its own, two in all
        assert left.nonzero().flatten().tolist() == [best[0], 2 + best[1]]

    def test_what_is_zero_comes_back_by_its_gradient(self):
        pressed = moves_of(network((1.0, 1.0), (1.0, 1.0)), 2)
        threshold = HardThresholdMoves(pressed)
        value = threshold.values()[MOVES]
        with torch.no_grad():
            value.copy_(torch.tensor([0.1, 0.0]))
        for gradient in ((0.0, -5.0), (0.1, -5.0)):
            value.grad = torch.tensor(gradient)
            threshold.before_step_()
        with torch.no_grad():
            value[1] = 0.01  # where the optimizer put it
        threshold.step_(1.0)
        assert value.tolist() == pytest.approx([0.0, 0.01])

    def test_between_two_renewals_as_many_stay_as_the_last_one_kept(self):
        pressed = moves_of(network(*[(1.0, 1.0)] * 4), 4)
        few = replace(pressed, problem=replace(pressed.problem, steps_per_epoch=640))
        threshold = HardThresholdMoves(few)
        value = threshold.values()[MOVES]
        value.grad = torch.tensor([4.0, 3.0, 2.0, 1.0])
        threshold.before_step_()
        threshold.step_(1.0)
        assert int((value != 0).sum()) == 2
        with torch.no_grad():
            value.fill_(1.0)
        assert not few.is_due(0.5 + 1 / 640)
        threshold.step_(0.5 + 1 / 640)
        assert int((value != 0).sum()) == 2

    def test_its_means_are_part_of_its_state(self):
        pressed = moves_of(network((1.0, 1.0), (2.0, 1.0)), 2)
        threshold = HardThresholdMoves(pressed)
        threshold.values()[MOVES].grad = torch.tensor([1.0, -3.0])
        threshold.before_step_()
        again = HardThresholdMoves(pressed)
        again.load_state_dict(threshold.state_dict())
        assert torch.equal(again.scores()[MOVES], threshold.scores()[MOVES])
        assert bool((again.scores()[MOVES] > 0).all())
