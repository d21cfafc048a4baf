"""Dropout of hidden activations and DropConnect: what is dropped, how much, and that nothing of it stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clouds import QUICK
from torch import Tensor, nn

from l0compress.data import Data
from l0compress.errors import InputError
from l0compress.gates.attach import compact_again, gate
from l0compress.graph import CapturedGraph, capture, masked
from l0compress.training.budget import Budget
from l0compress.training.dropout import ACTIVATIONS, WEIGHTS, contractions, drop_
from l0compress.training.finetune import finetune
from l0compress.training.gate_phase import GatePhase
from l0compress.training.input_dropout import dropout
from l0compress.training.problem import problem_of
from l0compress.training.settings import FinetuneSettings
from l0compress.verification.calls import Call
from l0compress.verification.equality import verify

BOTH = FinetuneSettings(dropout=0.25, drop_connect=0.5)


class Parts(nn.Module):
    """Words, a projection that is shared by two readers, a product of two activations, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.second = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(4, 5)
        self.columns, self.recurrent = nn.Parameter(torch.randn(6, 3)), nn.GRU(3, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        scores = self.first(x) @ self.second(x).transpose(1, 2)
        return self.recurrent(scores @ self.columns)[0]


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class TestPlaces:
    def test_products_with_weights_and_what_they_read_that_is_hidden(self):
        graph = capture(Parts(), (torch.zeros(2, 6, dtype=torch.long),))
        found = {one.node: (len(one.weights), one.hidden) for one in contractions(graph)}
        assert sorted(found.values()) == [(1, 0), (1, 0), (1, 0), (2, 0)]

    def test_the_input_is_not_hidden_however_it_is_moved(self):
        graph = capture(two_layers(), (torch.zeros(2, 2, 3),))
        assert [one.hidden for one in contractions(graph)] == [None, 0]


class TestNetworks:
    def test_layers_read_what_is_left_scaled_up(self):
        """The same draws by hand: of the weights of the first layer, then of the hidden units, then of the others."""
        model, x = two_layers(), torch.randn(16, 6)
        network = drop_(capture(model, (x[:2],)).module(), capture(model, (x[:2],)), BOTH).train()
        torch.manual_seed(3)
        found = network(x)
        torch.manual_seed(3)
        first = dropout(model[1].weight, 0.5)
        hidden = torch.relu(x @ first.T + model[1].bias)
        expected = dropout(hidden, 0.25) @ dropout(model[3].weight, 0.5).T + model[3].bias
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("settings", [FinetuneSettings(dropout=0.25), FinetuneSettings(drop_connect=0.25)])
    def test_the_mean_of_a_linear_layer_stays(self, settings):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(6, 40), nn.Linear(40, 1)).eval(), torch.randn(1, 6)
        graph = capture(model, (torch.zeros(2, 6),))
        network = drop_(graph.module(), graph, settings).train()
        with torch.no_grad():
            draws = torch.stack([network(x) for _ in range(4000)])
            assert float(draws.std()) > 0.01
            assert abs(float(draws.mean() - model(x))) < 4 * float(draws.std()) / 4000**0.5

    def test_in_evaluation_mode_and_with_nothing_to_drop_it_is_the_network_that_it_was(self):
        graph = capture(two_layers(), (torch.zeros(2, 6),))
        x, plain = torch.randn(5, 6), graph.module()
        network = drop_(graph.module(), graph, BOTH).train()
        assert not torch.equal(network(x), plain(x))
        assert torch.equal(network.eval()(x), plain(x))
        assert network.state_dict().keys() == plain.state_dict().keys()
        assert drop_(graph.module(), graph, FinetuneSettings()).train()(x).equal(plain(x))

    def test_as_much_as_possible_is_almost_all(self):
        assert 0 < int(dropout(torch.ones(100_000), 0.9999).count_nonzero()) < 1000


class TestRuns:
    def test_gates_are_trained_with_it_also_on_what_a_removal_leaves(self, graph: CapturedGraph, data: Data):
        settings = replace(QUICK, dropout=0.25, drop_connect=0.1)
        gated = gate(graph)
        problem = problem_of(graph, data, settings)
        phase = GatePhase(problem, gated, Budget(gated, {"params": 0.5}))
        names = {name for name, _ in phase.gated.network.named_children()}
        assert {ACTIVATIONS, WEIGHTS} <= names
        hidden = next(group for group in gated.groups.groups if group.kind == "channels").moves
        kept = torch.tensor([move for move in range(gated.groups.num_moves) if move not in hidden[:3]])
        phase._replace_network_(compact_again(phase.gated, kept))
        assert {name for name, _ in phase.gated.network.named_children()} == names
        x = data.train.inputs[0][:4]
        assert not torch.equal(phase.gated.train()(x), phase.gated(x))

    @pytest.mark.parametrize("granularity", ["structured", "weights"])
    def test_nothing_of_it_is_in_the_small_model(self, graph, data, granularity):
        settings = replace(QUICK, granularity=granularity, dropout=0.2, drop_connect=0.1)
        result = finetune(graph, data, {"params": 0.5}, settings=settings)
        assert not [node for node in result.small.nodes() if node.op == "call_module"]
        call = Call(data.test.take(slice(0, 50)).args)
        assert verify(result.small, masked(result.folded, result.plan), inputs=[call]).max_relative < 1e-6
        plain = finetune(graph, data, {"params": 0.5}, settings=replace(settings, dropout=0.0, drop_connect=0.0))
        assert plain.history[0].loss != result.history[0].loss
        assert result.best_evaluation.metric > 0.8

    def test_ternary_weights_are_dropped_as_they_are_computed_with(self, graph, data):
        settings = replace(QUICK, ternary=True, drop_connect=0.1)
        result = finetune(graph, data, {"params": 0.5}, settings=settings)
        assert len(result.small.state()["0.weight"][0].abs().unique()) <= 2


class TestRefusals:
    def test_a_model_with_nothing_hidden(self, data):
        graph = capture(nn.Linear(8, 3), (data.train.inputs[0][:2],))
        with pytest.raises(InputError) as error:
            finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, dropout=0.1, granularity="weights"))
        assert str(error.value) == (
            "dropout: no layer of the model reads what another one computes, so there is nothing hidden to drop. "
            "Nothing was changed. Leave --dropout out; --input-dropout is for what the model is given."
        )

    @pytest.mark.parametrize("name", ["dropout", "drop_connect"])
    @pytest.mark.parametrize("value", [-0.1, 1.0])
    def test_shares_that_are_none(self, name, value):
        with pytest.raises(InputError) as error:
            FinetuneSettings(**{name: value})
        assert str(error.value) == f"{name}={value}: expected 0 or more and below 1. Nothing was changed."
