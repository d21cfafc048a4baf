"""What makes gates cheap changes nothing that they compute: against the plain products, and float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0compress.data import Data, Split
from l0compress.gates.attach import compact, gate
from l0compress.gates.scaling import scaled, scaled_input, scaled_weight
from l0compress.gates.weight_gates import WeightGate
from l0compress.graph.capture import capture
from l0compress.training.budget import Budget
from l0compress.training.compaction import removal_macs, saved_macs
from l0compress.training.gate_phase import GatePhase
from l0compress.training.problem import problem_of
from l0compress.training.settings import FinetuneSettings, GateSettings

SHUT, OPEN = -40.0, 40.0


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 3)
    )


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def inputs() -> Tensor:
    return torch.randn(64, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("value", "factor"),
    [((300, 400), (1, 400)), ((300, 400), (400,)), ((70, 30, 7, 7), (1, 30, 1, 1)), ((5, 300, 64), (64,))],
)
def test_gradients_of_a_factor_are_those_of_the_plain_product(value: tuple[int, ...], factor: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    whole, scale = torch.randn(value, requires_grad=True), torch.rand(factor, requires_grad=True)
    with torch.no_grad():
        scale.view(-1)[::3] = 0.0
    weights = torch.randn(value)
    found = torch.autograd.grad((scaled(whole, scale) * weights).sum(), (whole, scale))
    exact = [tensor.detach().double().requires_grad_() for tensor in (whole, scale)]
    expected = torch.autograd.grad((exact[0] * exact[1] * weights).sum(), exact)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-4)


def test_the_smaller_of_weight_and_input_carries_the_factor() -> None:
    weight, factor = torch.ones(10, 4), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    few, many = torch.ones(3, 4, requires_grad=True), torch.ones(30, 4, requires_grad=True)
    assert scaled_weight(few, weight, factor) is weight
    assert scaled_input(many, weight, factor) is many
    assert scaled_input(few.detach(), weight, factor).equal(few)  # it would need a gradient for the factor's sake
    for x in (few, many):
        answer = scaled_input(x, weight, factor) @ scaled_weight(x, weight, factor).t()
        assert torch.equal(answer, x @ (weight * factor).t())


def test_a_factor_that_varies_along_rows_stays_on_the_weight() -> None:
    x, weight = torch.ones(1, 4, 2, 2, requires_grad=True), torch.ones(400, 2, 3, 3)
    grouped = torch.rand(400, 2, 1, 1)
    assert scaled_input(x, weight, grouped) is x
    assert torch.equal(scaled_weight(x, weight, grouped), weight * grouped)


@pytest.mark.parametrize("counted", [False, True])
def test_the_expected_sum_is_the_sum_over_probabilities(counted: bool) -> None:
    torch.manual_seed(0)
    gates = WeightGate(torch.randn(40, 6, 9, dtype=torch.float64) * 3)
    rows, columns = (torch.rand(size, dtype=torch.float64, requires_grad=True) for size in (40, 54))
    counts = torch.rand(40, 6, 9, dtype=torch.float64) if counted else None
    each = gates.probability_nonzero() * (1.0 if counts is None else counts)
    expected = torch.einsum("i,ij,j->", rows, each.view(40, 54), columns)
    found = gates.expected_sum(rows, columns, counts)
    torch.testing.assert_close(found, expected)
    at = (gates.log_alpha, rows, columns)
    for mine, wanted in zip(torch.autograd.grad(found * 3, at), torch.autograd.grad(expected * 3, at), strict=True):
        torch.testing.assert_close(mine, wanted)


# Where a gate interrupts the compiled graph, torch itself looks at the gradient of what is no leaf.
@pytest.mark.mostly_slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("model", "x"),
    [(mlp, torch.randn(40, 12)), (convolutions, torch.randn(5, 2, 5, 5)), (Attending, torch.randn(4, 6, 16))],
    ids=["linear layers", "convolutions", "attention"],
)
def test_a_compiled_network_has_the_gradients_of_the_uncompiled(model: type[nn.Module], x: Tensor) -> None:
    gated = gate(capture(model(), (x[:2],)), log_alpha=0.5)
    budget = Budget(gated, {"macs": 0.5})
    found = []
    for network in (gated, torch.compile(gated, backend="aot_eager")):
        torch.manual_seed(1)
        gated.zero_grad()
        (F.cross_entropy(network(x), torch.arange(len(x)) % 3) + budget.penalty()).backward()
        found.append({name: one.grad.clone() for name, one in gated.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


class TestCompaction:
    def phase(self, **changes: float) -> GatePhase:
        gates = replace(GateSettings(share=0.5), **changes)
        settings = FinetuneSettings(epochs=4, batch_size=16, gates=gates, clip=None, distill=False, input_dropout=0.0)
        split = Split((inputs(),), inputs()[:, :3].argmax(1))
        data = Data(split, split)
        problem = problem_of(capture(mlp(), (inputs()[:2],)), data, settings)
        gated = gate(problem.graph)
        with torch.no_grad():
            gated.gates.log_alpha.fill_(OPEN)
            for group in gated.groups.groups:
                if group.kind != "inputs":
                    gated.gates.log_alpha[list(group.moves)[::2]] = SHUT
        return GatePhase(problem, gated, Budget(gated, {"macs": 0.5}))

    def steps_(self, phase: GatePhase, count: int) -> list[float]:
        losses = []
        batch = next(iter(phase.problem.data.train.batches(64)))
        for number in range(count):
            loss = F.cross_entropy(batch.run(phase.network), batch.targets)
            losses.append(float(loss.detach()))
            phase.regularized(loss).backward()
            phase.step_(number / phase.problem.gated_steps)
        return losses

    def test_it_happens_within_an_epoch_and_does_not_change_what_is_learned(self) -> None:
        with_removal = self.phase(compact_every=3, compact_gain=0.0)
        without = self.phase(compact_below=1e-30)
        found, expected = self.steps_(with_removal, 7), self.steps_(without, 7)
        assert [len(cut) for cut in with_removal.cuts] == [12 + 16 + 12]
        assert without.cuts == []
        assert found[3] < found[0]
        assert found == pytest.approx(expected, rel=1e-4)

    def test_it_waits_until_it_pays(self) -> None:
        phase = self.phase(compact_every=1)
        self.steps_(phase, 3)
        assert phase.cuts == []

    def test_it_saves_the_products_of_what_is_removed(self) -> None:
        gated = self.phase().gated
        before, after = 12 * 32 + 32 * 24 + 24 * 3, 12 * 16 + 16 * 12 + 12 * 3
        assert saved_macs(gated, threshold=0.1, samples=10) == 3 * 10 * (before - after)
        assert saved_macs(compact(gated).gated, threshold=0.1, samples=10) == 0
        assert removal_macs(gated.groups.graph) > 0
