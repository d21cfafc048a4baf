"""One layer solved anew: against closed forms from numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from repairs import batches_of, errors, images, layers, outputs
from torch import Tensor, nn

from l0compress.data import Batch
from l0compress.graph import KeepPlan, capture, find_groups, shrink
from l0compress.training.repair import layerwise, least_squares, repair
from l0compress.training.repair.least_squares import Sums, best_step, cancellation, solve


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


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("factored", [1, 2**21])
def test_every_output_is_solved_on_its_own_support(
    monkeypatch: pytest.MonkeyPatch, density: float, factored: int
) -> None:
    monkeypatch.setattr(least_squares, "_FACTORED", factored)  # one output at a time, or all of them
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 60, size, generator=generator, dtype=torch.float64) for size in (7, 5))
    x[..., -1] = 1
    support = torch.rand(2, 7, 5, generator=generator) < density
    support[:, -1] = True
    sums = Sums()
    sums.add_(x, y)
    penalty = 0.3 * x[..., :-1].square().sum((1, 2)) / 6
    step = solve(sums, 0.3, free=1, support=support)
    assert not bool(step[~support].any())
    for group in range(2):
        for output in range(5):
            here = support[group, :, output]
            weights = penalty[group].sqrt() * torch.eye(7, dtype=torch.float64)[:-1]
            rows = torch.cat([x[group], weights])[:, here].numpy()
            wanted, *_ = scipy.linalg.lstsq(rows, torch.cat([y[group, :, output], y.new_zeros(6)]).numpy())
            np.testing.assert_allclose(step[group, here, output].numpy(), wanted, rtol=1e-9, atol=1e-12)


def nearly_alike(rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Two inputs that differ by a thousandth, a third of noise, and a target that is their difference."""
    generator = torch.Generator().manual_seed(seed)
    first, little, other = torch.randn(3, rows, generator=generator, dtype=torch.float64)
    inputs = torch.stack([first, first + 1e-3 * little, other], 1)[None]
    return inputs, (little + 0.5 * other)[None, :, None]


def test_weights_that_cancel_are_not_taken_however_exact_they_are() -> None:
    """Float64 would solve it with weights of a thousand, of which no rounding of inputs or weights leaves anything."""
    sums = [Sums(), Sums()]
    for seed, one in enumerate(sums):
        one.add_(*nearly_alike(400, seed=seed))
    exact = solve(sums[0], 1e-12)
    assert exact.abs().max() > 900 and cancellation(torch.as_tensor(sums[0].gram), exact) > 100
    found = best_step(*sums, penalties=layerwise.PENALTIES)
    assert found.after < 0.99 * found.before  # what can be had without
    assert found.step.abs().max() < 30


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
    torch.manual_seed(3)
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
    untouched = repair(graph, graph, KeepPlan.everything(groups), batches_of(lambda n: images(n).double()))
    assert all(layer.before < 1e-24 and not layer.repaired for layer in untouched.layers)


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
def test_a_layer_makes_up_for_what_its_sum_lacks(monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    graph = capture(Stream(between).double().eval(), (torch.zeros(2, 6).double(),))
    plan = KeepPlan.from_kept(find_groups(graph), {"up channels": [0, 1, 2, 3]})
    # The damaged layer has a mask of its own, too much to solve, so that it stays as it is.
    monkeypatch.setattr(layerwise, "MOST_WORK", 0)
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
