"""Recurrent layers solved anew, gate by gate, from what the dense network had."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from repairs import batches_of, errors, layers, outputs
from torch import Tensor, nn

from l0compress.data import Batch
from l0compress.graph import KeepPlan, capture, find_groups, shrink
from l0compress.training.repair import layerwise, repair

UNITS = 6
Kind = type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


class Tagger(nn.Module):
    """A recurrent network that says something at every step."""

    def __init__(self, kind: Kind, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(4, 2 * UNITS, **options)
        self.out = nn.Linear(2 * UNITS * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.out(states)


def doubled(net: Tagger) -> Tagger:
    """Every unit twice: the second half of the units of each gate is the first one's twin, whatever both feed."""
    with torch.no_grad():
        for name, tensor in net.rnn.named_parameters():
            if not name.startswith("weight_hr"):
                gates = tensor.unflatten(0, (GATES[type(net.rnn)], 2, UNITS))
                gates[:, 1] = gates[:, 0]
    return net


def sequences(n: int) -> Tensor:
    return torch.randn(n, 7, 4)


EXACT = [
    (nn.LSTM, {}),
    (nn.GRU, {}),
    (nn.RNN, {}),
    (nn.RNN, {"bias": False}),
    (nn.LSTM, {"bidirectional": True}),
    (nn.GRU, {"bidirectional": True, "num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "options"), EXACT)
def test_units_that_say_the_same_are_found_to_be_one(kind: Kind, options: dict[str, Any]) -> None:
    """Where each unit has a twin, half of them can compute everything, if what reads them counts them twice."""
    net = doubled(Tagger(kind, batch_first=True, **options)).eval()
    graph = capture(net, (sequences(2),))
    groups = find_groups(graph)
    kept = {name: list(range(UNITS)) for name in KeepPlan.everything(groups).kept() if "rnn" in name}
    small = shrink(graph, KeepPlan.from_kept(groups, kept))
    torch.manual_seed(1)
    repaired = repair(small, graph, KeepPlan.from_kept(groups, kept), batches_of(sequences))
    before, after = errors(graph, small, repaired, sequences(64))
    assert before > 1e-3
    assert after < 1e-9


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_layer_starts_from_the_state_that_it_is_given(batch_first: bool) -> None:
    class Continuing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tagger = doubled(Tagger(nn.GRU, batch_first=batch_first))
            self.start = nn.Linear(5, 2 * UNITS)
            with torch.no_grad():
                self.start.weight[UNITS:], self.start.bias[UNITS:] = self.start.weight[:UNITS], self.start.bias[:UNITS]

        def forward(self, x: Tensor, before: Tensor) -> Tensor:
            x = x if batch_first else x.transpose(0, 1)
            states, _ = self.tagger.rnn(x, 5 * self.start(before).unsqueeze(0))
            return self.tagger.out(states if batch_first else states.transpose(0, 1))

    def draw(n: int) -> tuple[Tensor, Tensor]:
        return sequences(n)[:, :2], torch.randn(n, 5)

    net = Continuing().eval()
    graph = capture(net, draw(2))
    groups = find_groups(graph)
    (name,) = (name for name, kept in KeepPlan.everything(groups).kept().items() if len(kept) == 2 * UNITS)
    plan = KeepPlan.from_kept(groups, {name: list(range(UNITS))})
    small = shrink(graph, plan)
    torch.manual_seed(1)
    repaired = repair(small, graph, plan, [Batch(draw(16), {}) for _ in range(16)])
    x = draw(64)
    with torch.no_grad():
        wanted, cut, found = (g.module()(*x) for g in (graph, small, repaired.graph))
    assert float((cut - wanted).abs().max()) > 1e-2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def pre_activations(rnn: nn.RNNBase, x: Tensor, side: str, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer reads of its input and of its state, and the states before each step, one step after the other."""
    kind = type(rnn)
    weights = [getattr(rnn, f"{name}_l0{side}").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    cell = {nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[kind](x.shape[2], initial.shape[1])
    for name, weight in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True):
        setattr(cell, name, nn.Parameter(weight))
    state, states = initial, []
    order = range(x.shape[1] - 1, -1, -1) if side else range(x.shape[1])
    with torch.no_grad():
        for step in order:
            states.append(state)
            state = cell(x[:, step], state)
    before = torch.stack([states[order.index(step)] for step in range(x.shape[1])], 1)
    return x @ weights[0].mT + weights[2], before @ weights[1].mT + weights[3], before


@pytest.mark.parametrize("side", ["", "_reverse"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_gates_are_solved_as_numpy_solves_them(kind: Kind, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step at a time: input and kept states on one side, what the dense gates add up on the other."""
    monkeypatch.setattr(layerwise, "PENALTIES", (1e-12,))
    net = Tagger(kind, batch_first=True, bidirectional=True).double().eval()
    graph = capture(net, (sequences(2).double(),))
    groups = find_groups(graph)
    kept = [0, 2, 3, 5, 7]
    plan = KeepPlan.from_kept(groups, {name: kept for name in KeepPlan.everything(groups).kept() if "rnn" in name})
    batches = batches_of(lambda n: sequences(n).double())
    repaired = repair(shrink(graph, plan), graph, plan, batches).graph.state()
    x = torch.cat([batch.args[0] for number, batch in enumerate(batches) if number % 4 != 3])
    read, fed_back, states = pre_activations(net.rnn, x, side, x.new_zeros(len(x), 2 * UNITS))
    ones = x.new_ones(*x.shape[:2], 1)
    first = torch.cat([x, states[..., kept], ones], 2).flatten(0, 1).numpy()
    last = [gate * 2 * UNITS + unit for gate in range(GATES[kind]) for unit in kept][-len(kept) :]
    if kind is nn.RNN:
        solution, *_ = np.linalg.lstsq(first, (read + fed_back)[..., last].flatten(0, 1).numpy(), rcond=None)
        found = torch.cat([repaired[f"rnn.weight_ih_l0{side}"], repaired[f"rnn.weight_hh_l0{side}"]], 1)
        np.testing.assert_allclose(found.mT.numpy(), solution[:-1], rtol=1e-5, atol=1e-7)
    else:
        reads_state = torch.cat([states[..., kept], ones], 2).flatten(0, 1).numpy()
        solution, *_ = np.linalg.lstsq(reads_state, fed_back[..., last].flatten(0, 1).numpy(), rcond=None)
        found = repaired[f"rnn.weight_hh_l0{side}"][-len(kept) :]
        np.testing.assert_allclose(found.mT.numpy(), solution[:-1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{"proj_size": UNITS}, {}])
def test_a_layer_comes_closer_where_it_cannot_be_exact(options: dict[str, int]) -> None:
    net = Tagger(nn.LSTM, batch_first=True, **options)
    if options:
        net.out = nn.Linear(UNITS, 3)
    graph = capture(net.eval(), (sequences(2),))
    plan = KeepPlan.random(find_groups(graph), 0.5, seed=1)
    small = shrink(graph, plan)
    repaired = repair(small, graph, plan, batches_of(sequences))
    assert layers(repaired)["rnn.l0"]
    before, after = errors(graph, small, repaired, sequences(64))
    assert after < before


def test_a_layer_that_comes_no_closer_keeps_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """More unknowns than rows to solve them on, and hardly a penalty: others are worse off with that."""
    monkeypatch.setattr(layerwise, "PENALTIES", (1e-9,))
    graph = capture(Tagger(nn.LSTM, batch_first=True).eval(), (sequences(2),))
    plan = KeepPlan.random(find_groups(graph), 0.5, seed=1)
    small = shrink(graph, plan)
    torch.manual_seed(1)
    repaired = repair(small, graph, plan, batches_of(sequences, 1, 1), held_out=batches_of(sequences, 1, 64))
    assert not layers(repaired)["rnn.l0"]
    for name, tensor in small.state().items():
        if name.startswith("rnn"):
            assert torch.equal(tensor, repaired.graph.state()[name])


def test_a_layer_that_is_run_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tagger = Tagger(nn.GRU, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.tagger(x) + self.tagger(2 * x)

    graph = capture(Twice().eval(), (sequences(2),))
    plan = KeepPlan.random(find_groups(graph), 0.5, seed=1)
    small = shrink(graph, plan)
    repaired = repair(small, graph, plan, batches_of(sequences))
    assert repaired.layers == ()
    x = sequences(4)
    assert torch.equal(outputs(small, x), outputs(repaired.graph, x))
