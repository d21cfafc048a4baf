"""Gates on single weights: against the reference formulas, Monte Carlo and the product formula."""

from __future__ import annotations

import pytest
import torch
from models import randomise
from torch import Tensor, nn

from l0compress.errors import InputError, NothingToPruneError
from l0compress.gates.attach import GatedNetwork, compact, gate
from l0compress.gates.hard_concrete import STRETCH, probability_nonzero, sample
from l0compress.gates.weight_gates import WeightGate, logistic_like
from l0compress.graph import CapturedGraph, KeepPlan, capture, cost, nonzero_cost, shrink
from l0compress.training.budget import Budget


class Mixed(nn.Module):
    """A convolution, a grouped one, a recurrent layer and a tied table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1, groups=4)
        self.rnn = nn.GRU(8, 6, batch_first=True)
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.grouped(torch.relu(self.conv(x)))).transpose(1, 2)
        return self.last(torch.relu(self.first(self.rnn(x)[0][:, -1])))


def mixed() -> CapturedGraph:
    return capture(randomise(Mixed()), (torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)),))


def mlp(hidden: int = 12) -> CapturedGraph:
    return capture(
        randomise(nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 3))), (torch.zeros(2, 5),)
    )


def scattered_(gated: GatedNetwork, centre: float = 0.5) -> GatedNetwork:
    """Gates with probabilities all over (0, 1)."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for log_alpha in gated.gate_parameters().values():
            log_alpha.copy_(centre + 1.5 * torch.randn(log_alpha.shape, generator=generator))
    return gated


class TestSampling:
    def test_it_is_the_reference_formula_times_the_weight(self):
        generator = torch.Generator().manual_seed(0)
        weight, log_alpha = torch.randn(2, 50, 40, generator=generator, dtype=torch.float64).unbind()
        uniform = torch.rand(50, 40, generator=generator, dtype=torch.float64)
        gate = WeightGate(log_alpha * 2, temperature=0.4)
        found = gate.sample(weight, uniform.logit())
        z = sample(log_alpha * 2, uniform, temperature=0.4)
        assert 0 < int((z == 0).sum()) < z.numel() and int((z == 1).sum()) > 0
        torch.testing.assert_close(found, weight * z, rtol=0, atol=1e-12)
        assert torch.equal(found == 0, z == 0)

    def test_its_derivatives_are_those_of_the_reference_formula(self):
        generator = torch.Generator().manual_seed(1)
        numbers = torch.randn(3, 30, 20, generator=generator, dtype=torch.float64)
        uniform = torch.rand(30, 20, generator=generator, dtype=torch.float64)
        expected, found = [], []
        for fused, gradients in ((False, expected), (True, found)):
            weight, log_alpha = (part.clone().requires_grad_() for part in numbers[:2])
            if fused:
                gate = WeightGate(log_alpha.detach().clone())
                product, log_alpha = gate.sample(weight, uniform.logit()), gate.log_alpha
            else:
                product = weight * sample(log_alpha, uniform, temperature=0.5)
            (product * numbers[2]).sum().backward()
            gradients += [weight.grad, log_alpha.grad]
        for a, b in zip(expected, found, strict=True):
            assert float(a.abs().sum()) > 0
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    def test_noise_is_logistic_and_finite(self):
        torch.manual_seed(0)
        noise = logistic_like(torch.empty(1001, 100)).sigmoid()
        assert float(noise.min()) > 0 and float(noise.max()) < 1
        shares = torch.histc(noise, bins=10, min=0, max=1) / noise.numel()
        assert float((shares - 0.1).abs().max()) < 0.005
        first, second = noise[:, :-1].flatten(), noise[:, 1:].flatten()
        assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.01

    def test_gates_are_zero_as_often_as_equation_twelve_says(self):
        torch.manual_seed(0)
        log_alpha = torch.linspace(-3, 3, 7)
        gate = WeightGate(log_alpha.expand(20_000, 7).clone())
        share = (gate(torch.ones(20_000, 7)) != 0).double().mean(0)
        expected = probability_nonzero(log_alpha, temperature=0.5, stretch=STRETCH)
        assert float((share - expected).abs().max()) < 0.015

    def test_evaluation_takes_the_median_and_draws_nothing(self):
        gate = WeightGate(torch.tensor([2.0, -2.0])).eval()
        before = torch.get_rng_state()
        assert gate(torch.tensor([3.0, 3.0])).tolist() == [3.0, 0.0]
        assert torch.equal(before, torch.get_rng_state())


class TestNetwork:
    def test_open_gates_leave_the_network_as_it_was(self):
        graph = mixed()
        gated = gate(graph, granularity="weights", log_alpha=20.0).eval()
        assert torch.equal(gated(*graph.example_args), graph.module()(*graph.example_args))

    def test_every_gate_and_every_weight_gets_a_gradient(self):
        gated = gate(mixed(), granularity="both").train()
        Budget(gated, {"params": 0.5})
        torch.manual_seed(0)
        gated(*gated.groups.graph.example_args).square().sum().backward()
        parameters = {**gated.gate_parameters(), **gated.weights()}
        silent = [name for name, parameter in parameters.items() if parameter.grad is None]
        assert not silent
        assert set(gated.weight_gates) == {name for name, parameter in gated.weights().items() if parameter.dim() > 1}

    def test_a_tied_table_has_one_gate_an_element_and_one_draw_for_both_its_readers(self):
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
                self.head.weight = self.table.weight

            def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
                return self.table(tokens), self.head(torch.eye(4))

        graph = capture(randomise(Tied()), (torch.arange(7).view(1, 7),), dynamic=None)
        gated = gate(graph, granularity="weights", log_alpha=-0.5).train()
        assert len(gated.gate_parameters()) == 1
        looked_up, multiplied = gated(torch.arange(7).view(1, 7))
        assert 0 < int((looked_up == 0).sum()) < looked_up.numel()
        torch.testing.assert_close(looked_up[0], multiplied.T)

    def test_the_state_holds_everything_that_gates_learn(self):
        gated = scattered_(gate(mixed(), granularity="both"))
        fresh = gate(mixed(), granularity="both")
        fresh.load_state_dict(gated.state_dict())
        torch.manual_seed(5)
        first = gated.train()(*gated.groups.graph.example_args)
        torch.manual_seed(5)
        assert torch.equal(fresh.train()(*gated.groups.graph.example_args), first)

    def test_compaction_cuts_gates_of_weights_along_and_keeps_the_function(self):
        gated = scattered_(gate(mixed(), granularity="both")).eval()
        with torch.no_grad():
            for group in gated.groups.groups:
                gated.gates.log_alpha[list(group.moves)[1::2]] = -30.0
        compacted = compact(gated)
        assert compacted.gated.groups.num_moves < gated.groups.num_moves
        old, new = gated.gate_parameters(), compacted.gated.gate_parameters()
        assert {name: gate.shape for name, gate in new.items() if name != "log_alpha"} == {
            name: compacted.gated.weights()[name].shape for name in new if name != "log_alpha"
        }
        for name, keeps in compacted.gate_keeps.items():
            if name in new:
                expected = old[name].detach()
                for dim, keep in enumerate(keeps):
                    expected = expected if keep is None else expected.index_select(dim, keep)
                assert torch.equal(new[name].detach(), expected)
        x = gated.groups.graph.example_args
        torch.testing.assert_close(compacted.gated.eval()(*x), gated(*x), rtol=1e-5, atol=1e-6)

    def test_a_model_without_weights_is_refused(self):
        class Scale(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(4, 1))

            def forward(self, x: Tensor) -> Tensor:
                return x * self.scale

        with pytest.raises(NothingToPruneError, match="there are no weights to gate"):
            gate(capture(Scale(), (torch.zeros(2, 4, 3),)), granularity="weights")

    def test_weights_are_gated_where_no_channel_can_go(self):
        assert list(gate(capture(nn.Linear(3, 2), (torch.zeros(2, 3),)), granularity="weights").weight_gates) == [
            "weight"
        ]

    def test_an_unknown_granularity_is_refused(self):
        with pytest.raises(InputError) as error:
            gate(mlp(), granularity="rows")
        assert str(error.value) == (
            "granularity='rows': expected one of structured, weights, both. Nothing was changed."
        )


@pytest.mark.slow
class TestExpectedCost:
    @pytest.mark.parametrize("unit", ["params", "macs"])
    def test_of_weights_it_is_the_mean_cost_of_sampled_networks(self, unit):
        graph = mixed()
        gated = scattered_(gate(graph, granularity="weights"))
        torch.manual_seed(0)
        costs = torch.tensor([float(sampled_cost(gated, graph).get(unit)) for _ in range(60)])
        expected = gated.expected_cost(unit).item()
        assert expected < 0.9 * cost(graph).get(unit)
        assert abs(float(costs.mean()) - expected) < 4 * float(costs.std()) / 60**0.5

    @pytest.mark.parametrize("unit", ["params", "macs"])
    def test_of_both_it_is_the_mean_cost_of_sampled_plans_and_networks(self, unit):
        graph = mlp()
        gated = scattered_(gate(graph, granularity="both"), centre=1.5)
        torch.manual_seed(0)
        probability = gated.gates.probability_nonzero().detach()
        costs = []
        for _ in range(150):
            plan = KeepPlan.from_keep(gated.groups, torch.bernoulli(probability).bool())
            costs.append(float(sampled_cost(gated, graph, plan).get(unit)))
        expected = gated.expected_cost(unit).item()
        assert abs(sum(costs) / 150 - expected) < 4 * float(torch.tensor(costs).std()) / 150**0.5

    def test_of_both_it_is_the_product_formula(self):
        """sum_ij p_out[i] p_in[j] p_w[ij] over each weight, and p_out over the hidden biases."""
        gated = scattered_(gate(mlp(), granularity="both"))
        p = gated.gates.probability_nonzero().double()
        by_kind = {group.kind: p[list(group.moves)] for group in gated.groups.groups}
        inputs, hidden = by_kind["inputs"], by_kind["channels"]
        first, last = (gated.weight_gates[name].probability_nonzero().double() for name in ("0.weight", "2.weight"))
        products = torch.einsum("i,j,ij->", hidden, inputs, first) + torch.einsum("j,ij->", hidden, last)
        biases = hidden.sum() + 3
        stored = 8 * products + 4 * (hidden.sum() + 1) + 4 * (3 + 1) + 4 * biases
        for unit, expected in (("macs", products), ("params", products + biases), ("bytes", stored)):
            assert gated.expected_cost(unit).item() == pytest.approx(expected.item(), rel=1e-6)

    @pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
    def test_of_both_with_open_channels_it_is_that_of_weights_alone(self, unit):
        graph = mixed()
        alone = scattered_(gate(graph, granularity="weights"))
        both = gate(graph, granularity="both")
        with torch.no_grad():
            both.gates.log_alpha.fill_(40.0)
            for name, weight_gate in both.weight_gates.items():
                weight_gate.log_alpha.copy_(alone.weight_gates[name].log_alpha)
        assert both.expected_cost(unit).item() == pytest.approx(alone.expected_cost(unit).item(), rel=1e-6)

    @pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
    def test_of_both_with_open_weights_it_is_that_of_channels_alone(self, unit):
        graph = mixed()
        channels = scattered_(gate(graph))
        both = gate(graph, granularity="both", log_alpha=40.0)
        with torch.no_grad():
            both.gates.log_alpha.copy_(channels.gates.log_alpha)
        wanted = channels.expected_cost(unit).item()
        if unit == "bytes":  # with an index for each element and a pointer for each row instead
            assert both.expected_cost(unit).item() > wanted
        else:
            assert both.expected_cost(unit).item() == pytest.approx(wanted, rel=1e-6)

    def test_of_both_it_is_that_of_weights_where_layers_read_parts_of_one_parameter(self):
        """A packed projection, whose rows meet sequences of 5 and of 7 positions, and two weights joined into one."""

        class Joined(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
                self.upper, self.lower = nn.Parameter(torch.zeros(3, 8)), nn.Parameter(torch.zeros(5, 8))

            def forward(self, x: Tensor, memory: Tensor) -> Tensor:
                return nn.functional.linear(self.layer(x, memory), torch.cat([self.upper, self.lower]))

        graph = capture(randomise(Joined()), (torch.zeros(2, 5, 8), torch.zeros(2, 7, 8)))
        alone, both = scattered_(gate(graph, granularity="weights")), gate(graph, granularity="both")
        with torch.no_grad():
            both.gates.log_alpha.fill_(40.0)
            for name, weight_gate in both.weight_gates.items():
                weight_gate.log_alpha.copy_(alone.weight_gates[name].log_alpha)
        assert both.expected_cost("macs").item() == pytest.approx(alone.expected_cost("macs").item(), rel=1e-6)

    @pytest.mark.parametrize("granularity", ["weights", "both"])
    @pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
    def test_its_derivative_is_that_of_finite_differences(self, granularity, unit):
        gated = scattered_(gate(mixed(), granularity=granularity)).double()
        gated.expected_cost(unit).backward()
        for log_alpha in gated.gate_parameters().values():
            where = (0,) * log_alpha.dim()
            values = []
            for change in (1e-4, -2e-4):
                with torch.no_grad():
                    log_alpha[where] += change
                values.append(gated.expected_cost(unit).item())
            with torch.no_grad():
                log_alpha[where] += 1e-4
            assert float(log_alpha.grad[where]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-6)


def sampled_cost(gated: GatedNetwork, graph: CapturedGraph, plan: KeepPlan | None = None):
    """The true cost of a network whose weights are multiplied by one draw of their gates."""
    state = dict(graph.state())
    for name, weight_gate in gated.weight_gates.items():
        state[name] = weight_gate.sample(state[name], logistic_like(weight_gate.log_alpha)).detach()
    drawn = graph.with_state(state)
    return nonzero_cost(drawn if plan is None else shrink(drawn, plan))
