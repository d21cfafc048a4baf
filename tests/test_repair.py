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
from l0compress.training.repair import Repaired, layerwise, repair
from l0compress.training.repair.least_squares import Sums, solve
from l0compress.training.repair.padding import counting

Draw = Callable[[int], Tensor]
Cut = tuple[CapturedGraph, KeepPlan, CapturedGraph]


def images(n: int) -> Tensor:
    return torch.randn(n, 4, 9, 9)


def batches_of(draw: Draw, count: int = 8, size: int = 16) -> list[Batch]:
    return [Batch((draw(size),), {}) for _ in range(count)]


def cut_half(net: nn.Module, draw: Draw, density: float = 0.5) -> Cut:
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


@pytest.fixture(scope="module")
def residual() -> Cut:
    return cut_half(Residual(), images)


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


def test_the_penalty_is_the_one_that_is_best_on_held_out_samples_and_spares_the_bias() -> None:
    """Fewer rows than unknowns, and a removed unit that is always on."""
    net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    with torch.no_grad():
        net[0].weight[39], net[0].bias[39], net[2].weight[:, 39] = 0, 2, 50
    graph = capture(net, (torch.zeros(2, 6).double(),))
    plan = KeepPlan.from_kept(find_groups(graph), {"0 channels": list(range(24))})
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(n, 6, generator=generator).double() for n in (16, 256))
    found = repair(shrink(graph, plan), graph, plan, [Batch((x,), {})], held_out=[Batch((other,), {})])
    (layer,) = [layer for layer in found.layers if layer.name == "2"]
    old = net[2].weight.detach().numpy()[:, :24].T
    hidden = [torch.tanh(net[0](part)).detach().numpy()[:, :24] for part in (x, other)]
    wanted = [outputs(graph, part).numpy() for part in (x, other)]
    afters: list[float] = []
    for penalty in layerwise.PENALTIES:
        shift = np.sqrt(penalty * np.square(hidden[0]).sum() / 24) * np.eye(24)
        rows = np.block([[hidden[0], np.ones((16, 1))], [shift, np.zeros((24, 1))]])
        solved, *_ = scipy.linalg.lstsq(rows, np.concatenate([wanted[0], shift @ old]))
        afters.append(np.square(hidden[1] @ solved[:-1] + solved[-1] - wanted[1]).sum() / np.square(wanted[1]).sum())
    assert min(afters) < 0.9 * min(afters[0], afters[-1])
    assert layer.after == pytest.approx(min(afters), rel=1e-6)


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
    """The removed unit does what the other does in the one part, and the opposite in the other."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.zero_()
        net[2].weight.fill_(1.0)
        net[2].bias.zero_()
    graph = capture(net, (torch.zeros(2, 2),))
    plan = KeepPlan.from_kept(find_groups(graph), {"0 channels": [0]})
    small = shrink(graph, plan)

    def line(sign: float) -> list[Batch]:
        return batches_of(lambda n: torch.randn(n, 1) * torch.tensor([[1.0, sign]]))

    found = repair(small, graph, plan, line(1), held_out=line(-1))
    assert layers(found)["2"] is False
    assert all(torch.equal(tensor, found.graph.state()[name]) for name, tensor in small.state().items())
    assert all(layer.after == layer.before for layer in found.layers)
    better = repair(small, graph, plan, line(1), held_out=line(1))
    assert better.graph.state()["2.weight"].item() == pytest.approx(2, rel=1e-6)


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


class Weighted(nn.Module):
    """Two layers as products with matrices, inputs first."""

    def __init__(self, way: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.way = way
        self.a, self.c = (nn.Parameter(torch.randn(size, generator=generator).double()) for size in ((6, 24), (24, 3)))
        self.b, self.d = (nn.Parameter(torch.randn(size, generator=generator).double()) for size in (24, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "linear":
            return F.linear(torch.tanh(F.linear(x, self.a.T, self.b)), self.c.T, self.d)
        if self.way == "addmm":
            return torch.addmm(self.d, torch.tanh(torch.addmm(self.b, x, self.a)), self.c)
        return torch.tanh(x @ self.a + self.b) @ self.c + self.d


@pytest.mark.parametrize("way", ["addmm", "matmul"])
def test_products_with_a_matrix_are_solved_as_linear_layers_are(way: str) -> None:
    def states(way: str) -> dict[str, Tensor]:
        graph = capture(Weighted(way), (torch.zeros(2, 6).double(),))
        groups = find_groups(graph)
        hidden = max(groups.groups, key=lambda group: len(group.moves))
        plan = KeepPlan.from_kept(groups, {f"{hidden.name} {hidden.kind}": list(range(12))})
        small = shrink(graph, plan)
        torch.manual_seed(0)
        found = repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 6).double()))
        assert layers(found)["c"]
        return dict(found.graph.state())

    wanted = states("linear")
    for name, tensor in states(way).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-9)


class Stream(nn.Module):
    """A layer with a cut input, and one with a whole input that can make up for it, whatever stands in between."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.between = between
        self.up, self.down, self.beside = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(6, 4)
        self.scale, self.norm = nn.Parameter(torch.tensor([0.5, 2.0, 3.0, -1.0])), nn.BatchNorm1d(4).eval()
        with torch.no_grad():
            self.norm.running_var.copy_(torch.tensor([0.5, 2.0, 3.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        damaged = self.down(torch.tanh(self.up(x)))
        if self.between == "views":
            turned = damaged.view(-1, 2, 2).transpose(1, 2)
            return (turned + self.beside(x).view(-1, 2, 2).transpose(1, 2)).flatten(1)
        y = self.beside(x)
        if self.between == "scale":
            return damaged + y * self.scale
        return damaged + (self.norm(y) if self.between == "norm" else F.dropout(y, 0.5, self.training))


@pytest.mark.parametrize("between", ["dropout", "views", "scale", "norm"])
def test_a_layer_makes_up_for_what_its_sum_lacks(between: str) -> None:
    graph = capture(Stream(between).double().eval(), (torch.zeros(2, 6).double(),))
    plan = KeepPlan.from_kept(find_groups(graph), {"up channels": [0, 1, 2, 3]})
    # The damaged layer has a mask of its own, so that it stays as it is.
    mask = torch.ones(4, 16, dtype=torch.bool)
    mask[0, 0] = False
    held = batches_of(lambda n: torch.randn(n, 6).double())
    masked = plan.with_masks({"down.weight": mask})
    train = batches_of(lambda n: torch.randn(n, 6).double(), count=32)
    found = repair(shrink(graph, masked), graph, masked, train, held_out=held)
    assert layers(found) == {"beside": True, "up": False}
    x, y = (torch.cat([batch.args[0] for batch in part]) for part in (train, held))
    lacking = outputs(graph, x) - outputs(shrink(graph, masked), x)
    features = [np.concatenate([part.numpy(), np.ones((len(part), 1))], 1) for part in (x, y)]
    step, *_ = scipy.linalg.lstsq(features[0], lacking.numpy())
    left = outputs(graph, y) - outputs(found.graph, y)
    best = (outputs(graph, y) - outputs(shrink(graph, masked), y)).numpy() - features[1] @ step
    assert float(left.square().sum()) == pytest.approx(np.square(best).sum(), rel=0.02)
    assert float(left.square().sum()) < 0.9 * np.square(best + features[1] @ step).sum()


def test_single_weights_that_a_plan_drops_stay_zero() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    graph, plan, _ = cut_half(net, lambda n: torch.randn(n, 6))
    plan = plan.with_masks({"2.weight": torch.rand(8, 16) < 0.5})
    small = shrink(graph, plan)
    found = repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 6)))
    assert torch.equal(found.graph.state()["2.weight"], small.state()["2.weight"])
    assert layers(found) == {"0": False, "4": True}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


def test_what_reads_a_recurrent_layer_is_solved_and_the_layer_stays() -> None:
    graph, plan, small = cut_half(Recurrent(), lambda n: torch.randn(n, 5, 6))
    found = repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 5, 6)))
    assert layers(found) == {"head": True}
    before, after = errors(graph, small, found, torch.randn(64, 5, 6))
    assert after < 0.5 * before
    changed = {name for name, tensor in small.state().items() if not torch.equal(tensor, found.graph.state()[name])}
    assert changed == {"head.weight", "head.bias"}


class Pooled(nn.Module):
    """Tokens of which a mask says which count."""

    def __init__(self, padding: bool) -> None:
        super().__init__()
        self.padding = padding
        self.up, self.down, self.kind = nn.Linear(4, 16), nn.Linear(16, 3), nn.Embedding(2, 4)

    def forward(self, x: Tensor, mask: Tensor, kind: Tensor) -> Tensor:
        seen = ~mask if self.padding else mask.bool()
        y = self.down(torch.relu(self.up(x + self.kind(kind))))
        return (y * seen.unsqueeze(2)).sum(1)


def token_batches(padding: bool, filler: float, size: int = 16) -> list[Batch]:
    made: list[Batch] = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 6, (size, 1), generator=generator)
        seen = torch.arange(8) < lengths
        x = torch.where(seen.unsqueeze(2), torch.randn(size, 8, 4, generator=generator), filler)
        kind = torch.randint(0, 2, (size, 8), generator=generator)
        made.append(Batch((x, ~seen if padding else seen.long()), {"kind": kind}))
    return made


@pytest.mark.parametrize("padding", [False, True], ids=["ones count", "true is padding"])
def test_padding_does_not_count(padding: bool) -> None:
    batches = token_batches(padding, 0.0)
    graph = capture(Pooled(padding), batches[0].args, batches[0].kwargs)
    plan = KeepPlan.random(find_groups(graph), 0.5, seed=0)
    small = shrink(graph, plan)
    seen = [(batch.args[1] == 0) if padding else (batch.args[1] == 1) for batch in batches]
    found = counting(graph.module(), batches)
    assert all(mask is not None and torch.equal(mask, wanted) for mask, wanted in zip(found, seen, strict=True))
    states = [repair(small, graph, plan, token_batches(padding, filler)).graph.state() for filler in (0.0, 30.0)]
    assert not torch.equal(states[0]["down.weight"], small.state()["down.weight"])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_where_the_data_do_not_tell_what_padding_is_all_positions_count() -> None:
    batches = token_batches(False, 0.0)
    graph = capture(Pooled(False), batches[0].args, batches[0].kwargs)
    mask = torch.randint(0, 2, (16, 8))
    unclear = [Batch((torch.randn(16, 8, 4), mask), {"kind": mask}) for _ in range(2)]
    assert counting(graph.module(), unclear) == [None, None]


def test_what_works_in_place_is_repaired_alike() -> None:
    def state(inplace: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.ReLU(inplace), nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace), nn.Conv2d(16, 3, 1)
        )
        graph, plan, small = cut_half(net, lambda n: images(n).sub(0.5))
        return dict(repair(small, graph, plan, batches_of(images)).graph.state())

    wanted = state(False)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(True).items())


def test_only_as_many_samples_are_used_as_there_is_memory_for(residual: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, small = residual
    monkeypatch.setattr(layerwise, "MOST_BYTES", 1)
    good, bad = batches_of(images), Batch((torch.full((16, 4, 9, 9), float("nan")),), {})
    found = repair(small, graph, plan, [good[0], *[bad] * 3], held_out=[good[1], bad])
    assert any(layers(found).values())
    assert all(bool(tensor.isfinite().all()) for tensor in found.graph.state().values())


def test_of_many_positions_a_share_is_enough(residual: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, small = residual
    whole = repair(small, graph, plan, batches_of(images))
    monkeypatch.setattr(layerwise, "MIN_ROWS", 1_000)
    share = repair(small, graph, plan, batches_of(images))
    assert share.layers != whole.layers
    after = [errors(graph, small, found, images(64))[1] for found in (share, whole)]
    assert after[0] < 2 * after[1]


def test_a_residual_network_comes_closer_to_the_dense_one(residual: Cut) -> None:
    graph, plan, small = residual
    found = repair(small, graph, plan, batches_of(images))
    before, after = errors(graph, small, found, images(64))
    assert after < 0.3 * before
    assert cost(found.graph) == cost(small) == plan.cost
    assert [node.name for node in found.graph.nodes()] == [node.name for node in small.nodes()]


class Block(nn.Module):
    """A transformer block whose norms come after the sums."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm1, self.up, self.down, self.norm2 = (
            nn.LayerNorm(16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.LayerNorm(16),
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = [part(x).unflatten(2, (4, 4)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        x = self.norm1(x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def test_a_transformer_block_comes_closer_to_the_dense_one() -> None:
    graph, plan, small = cut_half(Block(), lambda n: torch.randn(n, 6, 16))
    found = repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 6, 16)))
    before, after = errors(graph, small, found, torch.randn(64, 6, 16))
    assert after < 0.8 * before
    assert len(found.layers) == 6 and layers(found)["down"] and layers(found)["out"]


def test_the_same_inputs_give_the_same_bits_and_global_randomness_stays(residual: Cut) -> None:
    graph, plan, small = residual
    batches = batches_of(images)
    before = torch.get_rng_state()
    first = repair(small, graph, plan, batches)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = repair(small, graph, plan, batches)
    assert first.layers == second.layers
    assert all(torch.equal(t, second.graph.state()[name]) for name, t in first.graph.state().items())


def test_neither_graph_is_changed(residual: Cut) -> None:
    graph, plan, small = residual
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
