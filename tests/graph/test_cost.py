"""What a model costs: closed forms, the prediction for any plan, and the expectation under independent gates."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from networks import captured, image, tokens, vector
from torch import Tensor, nn

import l0compress.graph.groups.cost as cost_module
from l0compress.graph import UNITS, CapturedGraph, Cost, Groups, KeepPlan, capture, cost, find_groups, shrink


def test_a_linear_layer_multiplies_every_input_by_every_output() -> None:
    assert cost(capture(nn.Linear(6, 5), (torch.zeros(2, 6),))) == Cost(35, 30, 140)


def test_a_linear_layer_on_tokens_counts_every_token_of_a_sample() -> None:
    assert cost(capture(nn.Linear(6, 5), (torch.zeros(2, 7, 6),))).macs == 7 * 30


def test_the_batch_does_not_change_the_cost() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4))
    assert cost(capture(model, (torch.zeros(2, 3, 8, 8),))) == cost(capture(model, (torch.zeros(7, 3, 8, 8),)))


@pytest.mark.parametrize(("conv_groups", "stride", "size"), [(1, 1, 8), (2, 1, 8), (4, 2, 4)])
def test_a_convolution_multiplies_its_kernel_at_every_output_position(conv_groups: int, stride: int, size: int) -> None:
    model = nn.Conv2d(4, 12, 3, stride, 1, groups=conv_groups)
    weight = 12 * (4 // conv_groups) * 9
    assert cost(capture(model, (image(4),))) == Cost(weight + 12, weight * size * size, 4 * (weight + 12))


def test_one_and_three_dimensional_convolutions_count_alike() -> None:
    assert cost(capture(nn.Conv1d(3, 5, 3), (torch.zeros(2, 3, 10),))).macs == 3 * 5 * 3 * 8
    assert cost(capture(nn.Conv3d(3, 5, 2), (torch.zeros(2, 3, 4, 4, 4),))).macs == 3 * 5 * 8 * 27


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class ByHand(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT).softmax(-1) @ value


@pytest.mark.parametrize("module", [Attention(), ByHand()])
def test_attention_counts_scores_and_their_product_with_the_values(module: nn.Module) -> None:
    shapes = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))
    assert cost(capture(module, tuple(torch.randn(shape) for shape in shapes))).macs == 3 * 5 * 7 * (4 + 6)


def test_bytes_count_buffers_and_tied_weights_once() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    graph = captured(
        lambda s, t: F.linear(s.e(t) * s.scale, s.e.weight), ids, e=nn.Embedding(9, 4), scale=torch.rand(4)
    )
    assert cost(graph) == Cost(params=36, macs=5 * 36, bytes=8 * 40)
    assert cost(graph.to(torch.float32)).bytes == 4 * 40


def test_a_cost_is_read_by_unit() -> None:
    found = Cost(params=1, macs=2, bytes=3, int8_bytes=4)
    assert [found.get(unit) for unit in UNITS] == [1, 2, 3, 4]
    with pytest.raises(KeyError, match="flops"):
        found.get("flops")


def test_bytes_in_int8_are_counted_when_they_are_read_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[CapturedGraph] = []
    count = cost_module.int8_terms
    monkeypatch.setattr(cost_module, "int8_terms", lambda graph: counted.append(graph) or count(graph))
    graph = capture(nn.Linear(6, 5), (torch.zeros(2, 6),))
    found = cost(graph)
    assert (
        found == Cost(35, 30, 140) and found.get("macs") == 30 and repr(found) == "Cost(params=35, macs=30, bytes=140)"
    )
    assert counted == []
    in_int8 = 5 * 6 + 5 * (4 + 1) + 5 * 4  # an element, a scale and a zero point an output, and the biases in float
    assert (found.int8_bytes, found.get("int8_bytes")) == (in_int8, in_int8)
    assert counted == [graph]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda found: pickle.loads(pickle.dumps(found)), replace])
def test_copies_have_the_number(copied: Callable[[Cost], Cost]) -> None:
    found = copied(cost(capture(nn.Linear(6, 5), (torch.zeros(2, 6),))))
    assert asdict(found) == {"params": 35, "macs": 30, "bytes": 140, "int8_bytes": 75}


def three_layers() -> Groups:
    layers = {"a": nn.Linear(6, 5), "b": nn.Linear(5, 4), "c": nn.Linear(4, 3)}
    return find_groups(captured(lambda s, x: s.c(F.gelu(s.b(F.gelu(s.a(x))))), vector(), **layers))


def with_attention() -> Groups:
    def attention(s: nn.Module, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.o(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(2, 4), "k": nn.Linear(2, 4), "v": nn.Linear(2, 4), "o": nn.Linear(4, 3)}
    return find_groups(captured(attention, tokens(2, 3), **layers))


def closed_form(keep: Tensor, inputs: int, hidden: tuple[int, int], outputs: int) -> Cost:
    widths = [int(part.sum()) for part in keep.split([hidden[0], hidden[1], inputs])]
    first, second, wanted = widths
    macs = wanted * first + first * second + second * outputs
    params = macs + first + second + outputs
    return Cost(params, macs, 8 * params)


def test_the_cost_of_a_plan_is_the_closed_form() -> None:
    groups = three_layers()
    assert [(group.name, group.kind) for group in groups.groups] == [
        ("a", "channels"),
        ("a", "inputs"),
        ("b", "channels"),
    ]
    for seed in range(20):
        plan = KeepPlan.random(groups, 0.5, seed)
        hidden_first = torch.cat([plan.keep[:5], plan.keep[11:], plan.keep[5:11]])
        assert plan.cost == closed_form(hidden_first, 6, (5, 4), 3) == cost(shrink(groups.graph, plan))


def probability_of(keep: tuple[bool, ...], probabilities: Tensor) -> Tensor:
    kept = torch.tensor(keep)
    return torch.where(kept, probabilities, 1 - probabilities).prod()


@pytest.mark.parametrize("unit", UNITS)
def test_the_expected_cost_is_the_mean_over_every_outcome_of_independent_gates(unit: str) -> None:
    layers = {"a": nn.Linear(3, 4), "b": nn.Linear(4, 3), "c": nn.Linear(3, 2)}
    groups = find_groups(captured(lambda s, x: s.c(F.gelu(s.b(F.gelu(s.a(x))))), vector(3), **layers))
    probabilities = torch.rand(groups.num_moves, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outcomes = itertools.product([False, True], repeat=groups.num_moves)
    mean = sum(probability_of(keep, probabilities) * linear_cost(torch.tensor(keep), unit) for keep in outcomes)
    assert float(groups.expected_cost(probabilities, unit)) == pytest.approx(float(mean), rel=1e-12)


def linear_cost(keep: Tensor, unit: str) -> int:
    """The closed form in the order of the moves: first hidden layer, inputs, second hidden layer."""
    first, wanted, second = (int(part.sum()) for part in keep.split([4, 3, 3]))
    macs = wanted * first + first * second + second * 2
    params = macs + first + second + 2
    # A byte a weight, a scale and a zero point an output, and biases as they are.
    in_int8 = macs + (5 + 8) * (first + second + 2)
    return {"macs": macs, "params": params, "bytes": 8 * params, "int8_bytes": in_int8}[unit]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("build", [three_layers, with_attention])
def test_the_expected_cost_at_zero_and_one_is_the_cost(build, unit: str) -> None:
    groups = build()
    for seed in range(5):
        plan = KeepPlan.random(groups, 0.6, seed)
        expected = groups.expected_cost(plan.keep.double(), unit)
        assert float(expected) == pytest.approx(plan.cost.get(unit), abs=1e-6)
        assert groups.cost_of(plan.keep) == plan.cost


@pytest.mark.parametrize("build", [three_layers, with_attention])
@pytest.mark.parametrize("unit", UNITS)
def test_its_gradient_is_the_finite_difference(build, unit: str) -> None:
    groups = build()
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(groups.num_moves, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: groups.expected_cost(p, unit), (probabilities,), rtol=1e-6)


def test_a_group_knows_what_goes_with_it() -> None:
    first, inputs, second = three_layers().groups
    assert (first.params, first.macs) == (5 * 6 + 5 + 4 * 5, 5 * 6 + 4 * 5)
    assert (inputs.params, inputs.macs) == (30, 30)
    assert (second.params, second.macs) == (4 * 5 + 4 + 3 * 4, 4 * 5 + 3 * 4)


def test_what_the_data_decides_the_size_of_is_not_counted() -> None:
    layers = {"a": nn.Linear(6, 5), "b": nn.Linear(5, 2)}
    graph = captured(lambda s, x: s.b(F.gelu(s.a(x))[x[:, 0] > 0]).sum(0), vector(), **layers)
    groups = find_groups(graph)
    assert cost(graph).macs == 30
    for seed in range(3):
        plan = KeepPlan.random(groups, 0.5, seed)
        assert cost(shrink(graph, plan)) == plan.cost
