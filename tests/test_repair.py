"""Repair of a shrunk network by least squares, against closed forms from numpy and scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0compress.data import Batch
from l0compress.errors import DataError, InputError, PlanError
from l0compress.graph import CapturedGraph, KeepPlan, capture, cost, find_groups, shrink
from l0compress.training.repair import Repaired, repair
from l0compress.training.repair.least_squares import Sums, solve

Draw = Callable[[int], Tensor]


def batches_of(draw: Draw, count: int = 8, size: int = 16) -> list[Batch]:
    return [Batch((draw(size),), {}) for _ in range(count)]


def cut_half(net: nn.Module, draw: Draw, density: float = 0.5) -> tuple[CapturedGraph, KeepPlan, CapturedGraph]:
    torch.manual_seed(0)
    graph = capture(net.eval(), (draw(2),))
    plan = KeepPlan.random(find_groups(graph), density, seed=1)
    return graph, plan, shrink(graph, plan)


def outputs(graph: CapturedGraph, x: Tensor) -> Tensor:
    with torch.no_grad():
        return graph.module()(x)


def errors(graph: CapturedGraph, small: CapturedGraph, repaired: Repaired, x: Tensor) -> tuple[float, float]:
    """The mean squared errors of the outputs before and after, over the mean square of what they should be."""
    wanted = outputs(graph, x)
    return tuple(
        float((outputs(g, x) - wanted).square().mean() / wanted.square().mean()) for g in (small, repaired.graph)
    )


def layers(repaired: Repaired) -> dict[str, bool]:
    return {layer.name: layer.repaired for layer in repaired.layers}


def test_the_step_is_that_of_ridge_regression_about_the_old_weights() -> None:
    generator = np.random.default_rng(0)
    x, y, old = (generator.normal(size=size) for size in ((40, 5), (40, 3), (5, 3)))
    penalty = 0.3 * np.square(x).sum() / 5
    # Ridge regression as an ordinary least squares problem with five more rows.
    rows = np.concatenate([x, np.sqrt(penalty) * np.eye(5)])
    wanted, *_ = scipy.linalg.lstsq(rows, np.concatenate([y, np.sqrt(penalty) * old]))
    sums = Sums()
    for part in (slice(0, 15), slice(15, 40)):
        inputs, outputs = torch.from_numpy(x[part])[None], torch.from_numpy(y[part])[None]
        sums.add_(inputs, outputs - inputs @ torch.from_numpy(old))
    step = solve(sums, 0.3)
    np.testing.assert_allclose(old + step[0].numpy(), wanted, rtol=1e-10)
    error = np.square(y - x @ (old + step[0].numpy())).sum(0)
    np.testing.assert_allclose(sums.error(step)[0].numpy(), error, rtol=1e-10)


def test_a_bias_is_not_penalised() -> None:
    x = torch.cat([torch.randn(1, 50, 3).double(), torch.ones(1, 50, 1).double()], 2)
    sums = Sums()
    sums.add_(x, torch.full((1, 50, 2), 7.0).double())
    step = solve(sums, 1e6, free=1)
    torch.testing.assert_close(step[0, -1], torch.tensor([7.0, 7.0]).double(), rtol=1e-4, atol=0)
    assert step[0, :-1].abs().max() < 1e-4


def test_the_last_layer_of_a_perceptron_is_solved_like_scipy_does() -> None:
    net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 3)).double()
    graph = capture(net, (torch.zeros(2, 6).double(),))
    plan = KeepPlan.from_kept(find_groups(graph), {"0 channels": list(range(10))})
    train, held = batches_of(lambda n: torch.randn(n, 6).double()), batches_of(lambda n: torch.randn(n, 6).double())
    small = shrink(graph, plan)
    found = repair(small, graph, plan, train, held_out=held)
    hidden = [torch.tanh(net[0](batch.args[0])).detach()[:, :10].numpy() for batch in (*train, *held)]
    hidden = [np.concatenate([h, np.ones((len(h), 1))], 1) for h in hidden]
    wanted = [outputs(graph, batch.args[0]).numpy() for batch in (*train, *held)]
    solved, *_ = scipy.linalg.lstsq(np.concatenate(hidden[:8]), np.concatenate(wanted[:8]))
    after = np.square(np.concatenate(hidden[8:]) @ solved - np.concatenate(wanted[8:])).sum()
    (layer,) = [layer for layer in found.layers if layer.name == "2"]
    # No penalty does better on held-out samples than hardly any, or else repair would have found a better one yet.
    assert layer.after <= after / np.square(np.concatenate(wanted[8:])).sum() * (1 + 1e-6)
    assert layer.repaired and layer.after < 0.2 * layer.before
    assert layers(found)["0"] is False


def images(n: int) -> Tensor:
    return torch.randn(n, 4, 9, 9)


@pytest.mark.parametrize(
    "second",
    [
        nn.Conv2d(16, 8, 3, stride=2, padding=1),
        nn.Conv2d(16, 8, (3, 2), padding="same", dilation=(1, 2), bias=False),
        nn.Conv2d(16, 8, 3, groups=4, padding=1),
        nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(16, 8, (2, 3), groups=2, dilation=2),
    ],
    ids=["strided", "same", "grouped", "transposed", "transposed grouped"],
)
def test_convolutions_are_solved_as_least_squares_over_what_they_read(second: nn.Module) -> None:
    """The first convolution has doubles of its channels, so that what goes can be made up for exactly."""
    net = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), second).double().eval()
    with torch.no_grad():
        net[0].weight[1::2] = net[0].weight[::2]
        net[0].bias[1::2] = net[0].bias[::2]
    graph = capture(net, (images(2).double(),))
    groups = find_groups(graph)
    (group,) = groups.groups
    plan = KeepPlan.from_kept(groups, {f"0 {group.kind}": list(range(0, len(group.moves), 2))})
    small = shrink(graph, plan)
    found = repair(small, graph, plan, batches_of(lambda n: images(n).double()))
    before, after = errors(graph, small, found, images(8).double())
    assert before > 1e-2
    assert after < 1e-12


def test_depthwise_convolutions_are_solved_channel_by_channel() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 3, 1)).double()
    graph = capture(net, (images(2).double(),))
    plan = KeepPlan.random(find_groups(graph), 0.5, seed=0)
    small = shrink(graph, plan)
    damaged = small.with_state({k: v + 0.3 if k == "2.weight" else v for k, v in small.state().items()})
    found = repair(damaged, graph, plan, batches_of(lambda n: images(n).double()))
    torch.testing.assert_close(found.graph.state()["2.weight"], small.state()["2.weight"], rtol=1e-5, atol=1e-6)


def test_what_does_not_improve_on_held_out_samples_keeps_its_bits() -> None:
    graph, plan, small = cut_half(
        nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)), lambda n: torch.randn(n, 6)
    )
    # Nothing that can be learnt from inputs of zeros helps on any others, and their outputs are level already.
    zeros, others = [Batch((torch.zeros(16, 6),), {})], batches_of(lambda n: 10 * torch.randn(n, 6))
    found = repair(small, graph, plan, zeros, held_out=others)
    for name, tensor in small.state().items():
        layer = next((layer for layer in found.layers if name.startswith(f"{layer.name}.")), None)
        if layer is not None and not layer.repaired:
            assert torch.equal(found.graph.state()[name], tensor)
            assert layer.after == layer.before
    assert all(layer.after <= layer.before for layer in found.layers)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(11, 8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.out(torch.relu(self.hidden(self.embed(ids)))), self.embed.weight)


def test_parameters_that_several_layers_read_stay() -> None:
    graph, plan, small = cut_half(Tied(), lambda n: torch.randint(0, 11, (n, 5)))
    found = repair(small, graph, plan, batches_of(lambda n: torch.randint(0, 11, (n, 5))))
    assert torch.equal(found.graph.state()["embed.weight"], small.state()["embed.weight"])
    assert set(layers(found)) == {"hidden", "out"} and layers(found)["out"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
        self.third, self.norm2, self.fourth = nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
        self.norm3, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.second(F.relu(self.norm1(self.first(x))))
        x = x + self.norm3(self.fourth(F.relu(self.norm2(self.third(x)))))
        return self.head(F.relu(x).mean((2, 3)))


def test_a_residual_network_comes_closer_to_the_dense_one() -> None:
    graph, plan, small = cut_half(Residual(), images)
    found = repair(small, graph, plan, batches_of(images))
    before, after = errors(graph, small, found, images(64))
    assert after < 0.3 * before
    assert cost(found.graph) == cost(small) == plan.cost
    assert [node.name for node in found.graph.nodes()] == [node.name for node in small.nodes()]


def test_a_transformer_comes_closer_to_the_dense_one() -> None:
    net = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    graph, plan, small = cut_half(net, lambda n: torch.randn(n, 6, 16), density=0.7)
    found = repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 6, 16)))
    before, after = errors(graph, small, found, torch.randn(64, 6, 16))
    assert after < 0.7 * before


def test_the_same_inputs_give_the_same_bits_and_global_randomness_stays() -> None:
    graph, plan, small = cut_half(Residual(), images)
    batches = batches_of(images)
    before = torch.get_rng_state()
    first = repair(small, graph, plan, batches)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = repair(small, graph, plan, batches)
    assert first.layers == second.layers
    assert all(torch.equal(t, second.graph.state()[name]) for name, t in first.graph.state().items())


def test_neither_graph_is_changed() -> None:
    graph, plan, small = cut_half(Residual(), images)
    states = [{name: t.clone() for name, t in g.state().items()} for g in (graph, small)]
    repair(small, graph, plan, batches_of(images))
    for g, state in zip((graph, small), states, strict=True):
        assert all(torch.equal(t, g.state()[name]) for name, t in state.items())


def test_one_batch_is_not_enough() -> None:
    graph, plan, small = cut_half(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), lambda n: torch.randn(n, 6)
    )
    with pytest.raises(DataError) as caught:
        repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 6), count=1))
    assert str(caught.value) == (
        "repair got 1 batch, and it needs some to solve layers on and others to check them on. Nothing was changed. "
        "Give two or more, or some as held_out."
    )


def test_another_small_graph_than_the_plan_leaves_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    graph, plan, small = cut_half(net, lambda n: torch.randn(n, 6))
    other = KeepPlan.from_kept(plan.groups, {"0 channels": [0]})
    with pytest.raises(PlanError) as caught:
        repair(small, graph, other, batches_of(lambda n: torch.randn(n, 6)))
    width = len(plan.kept()["0 channels"])
    shape = tuple(small.state()["0.weight"].shape)
    assert shape[0] == width
    assert str(caught.value) == (
        f"the small graph's '0.weight' has shape {shape} where the plan leaves (1, 6). Nothing was changed. Give "
        "repair the graph that shrink(graph, plan) returned, and that very plan."
    )
    with pytest.raises(InputError, match="repair takes a captured graph"):
        repair(small.module(), graph, plan, [])
