"""Recurrent layers: what of them can go, at any length of the sequence, in PyTorch and under ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from networks import Net, captured, reasons, table, vector, worst_error
from proofs import assert_exact, assert_exports, assert_gateable, graph_of, prunable_share
from torch import Tensor, nn
from torch.export import Dim

from l0compress.errors import SurgeryError
from l0compress.export.onnx import export_onnx
from l0compress.export.pt2 import export_pt2
from l0compress.graph import CapturedGraph, Cost, KeepPlan, capture, cost, find_groups, masked, shrink

pytestmark = pytest.mark.slow

FREE = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}


class Recurrent(Net):
    """A network of one sequence."""

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def sequence(width: int = 6) -> Tensor:
    return torch.randn(3, 7, width, generator=torch.Generator().manual_seed(1))


def on_every_step(s: Any, x: Tensor) -> Tensor:
    return s.o(F.gelu(s.r(F.gelu(s.a(x)))[0]))


def on_the_last_states(s: Any, x: Tensor) -> Tensor:
    _, (hidden, cell) = s.r(s.a(x))
    return s.o(torch.cat([hidden[-1], cell[0]], -1))


def on_all_states(s: Any, x: Tensor) -> Tensor:
    return s.o(s.r(s.a(x))[1].transpose(0, 1).flatten(1))


def time_first(s: Any, x: Tensor) -> Tensor:
    return s.o(s.r(s.a(x).transpose(0, 1))[0].mean(0))


def from_zeros(s: Any, x: Tensor) -> Tensor:
    return s.o(s.r(s.a(x), torch.zeros(2, x.shape[0], 8).to(x.dtype))[0])


def from_zeros_written_over(s: Any, x: Tensor) -> Tensor:
    h = torch.zeros(2, x.shape[0], 8).to(x.dtype)
    h[1] = 0.5
    return s.o(s.r(s.a(x), h)[0])


def with_states_written_over(s: Any, x: Tensor) -> Tensor:
    y, h = s.r(s.a(x))
    h[0].mul_(3)
    return s.o(y) + s.o(h[0]).unsqueeze(1) + s.o(h.sum(0)).unsqueeze(1)


def encoder_decoder(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return s.o(s.r(h, s.e(h.flip(1))[1])[0])


def from_a_learned_state(s: Any, x: Tensor) -> Tensor:
    return s.o(s.r(s.a(x), s.h.expand(1, x.shape[0], 8).contiguous())[0])


def cell_by_cell(s: Any, x: Tensor) -> Tensor:
    h, c = x.new_zeros(x.shape[0], 8), x.new_zeros(x.shape[0], 8)
    for step in s.a(x).unbind(1):
        h, c = s.r(step, (h, c))
    return s.o(h)


def gated_cells(s: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], 8)
    for step in s.a(x).unbind(1):
        h = s.r(step, h)
    return s.o(h)


def net(function: Callable[..., Any], recurrent: nn.Module, features: int = 8, **more: Any) -> nn.Module:
    return Recurrent(function, a=nn.Linear(6, 5), r=recurrent, o=nn.Linear(features, 4), **more)


# The network, and the moves of each group of its recurrent layers.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "LSTM": (lambda: net(on_every_step, nn.LSTM(5, 8, batch_first=True)), [8]),
    "LSTM without biases": (lambda: net(on_every_step, nn.LSTM(5, 8, bias=False, batch_first=True)), [8]),
    "LSTM of two layers": (lambda: net(on_every_step, nn.LSTM(5, 8, 2, dropout=0.3, batch_first=True)), [8, 8]),
    "LSTM of three layers both ways": (
        lambda: net(on_every_step, nn.LSTM(5, 8, 3, bidirectional=True, batch_first=True), 16),
        [8, 8, 8],
    ),
    "LSTM with projections": (
        lambda: net(on_every_step, nn.LSTM(5, 8, 2, proj_size=3, bidirectional=True, batch_first=True), 6),
        [4, 3, 4, 3],
    ),
    "LSTM by its last states": (lambda: net(on_the_last_states, nn.LSTM(5, 8, 2, batch_first=True), 16), [8, 8]),
    "LSTM time first": (lambda: net(time_first, nn.LSTM(5, 8, bidirectional=True), 16), [8]),
    "GRU": (lambda: net(on_every_step, nn.GRU(5, 8, batch_first=True)), [8]),
    "GRU of two layers both ways": (
        lambda: net(on_every_step, nn.GRU(5, 8, 2, bidirectional=True, batch_first=True), 16),
        [8, 8],
    ),
    "GRU by all states": (lambda: net(on_all_states, nn.GRU(5, 8, 2, batch_first=True), 16), [8]),
    "GRU from zeros": (lambda: net(from_zeros, nn.GRU(5, 8, 2, batch_first=True)), [8, 8]),
    "GRU from a learned state": (
        lambda: net(from_a_learned_state, nn.GRU(5, 8, batch_first=True), h=nn.Parameter(torch.ones(1, 1, 8))),
        [8],
    ),
    "GRU decoder": (
        lambda: net(encoder_decoder, nn.GRU(5, 8, batch_first=True), e=nn.GRU(5, 8, batch_first=True)),
        [8],
    ),
    "tanh": (lambda: net(on_every_step, nn.RNN(5, 8, 2, batch_first=True)), [8, 8]),
    "ReLU both ways": (
        lambda: net(on_every_step, nn.RNN(5, 8, nonlinearity="relu", bidirectional=True, batch_first=True), 16),
        [8],
    ),
}


CELLS: dict[str, tuple[Callable[..., Any], nn.Module]] = {
    "LSTM cell": (cell_by_cell, nn.LSTMCell(5, 8)),
    "GRU cell": (gated_cells, nn.GRUCell(5, 8)),
    "tanh cell": (gated_cells, nn.RNNCell(5, 8)),
    "ReLU cell without biases": (gated_cells, nn.RNNCell(5, 8, bias=False, nonlinearity="relu")),
}


WRITTEN: dict[str, Callable[[], nn.Module]] = {
    "zeros written over": lambda: net(from_zeros_written_over, nn.GRU(5, 8, 2, batch_first=True)),
    "states written over": lambda: net(with_states_written_over, nn.GRU(5, 8, 2, batch_first=True)),
}


def build(name: str) -> CapturedGraph:
    return graph_of(NETWORKS[name][0](), sequence(), dynamic=FREE)


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_units_go(name: str) -> None:
    graph = build(name)
    groups = assert_exact(graph)
    widths = [len(group.moves) for group in groups.groups if group.name != "a"]
    assert widths == NETWORKS[name][1]
    assert prunable_share(groups) > (0.85 if name != "LSTM with projections" else 0.7)


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_stand_for_them(name: str) -> None:
    # Fewer projections set hidden units free that had to stay before; compaction leaves such a network as it is.
    assert_gateable(build(name), compacts=name != "LSTM with projections")


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_computes_the_same_at_any_length(name: str, tmp_path: Path) -> None:
    assert_exports(build(name), tmp_path)


@pytest.mark.parametrize("name", CELLS)
def test_cells_in_a_loop_of_the_user_s_own(name: str, tmp_path: Path) -> None:
    graph = graph_of(net(*CELLS[name]), sequence()[:, :3])
    groups = assert_exact(graph)
    assert table(groups)["r channels"] == 8
    assert prunable_share(groups) > 0.9
    assert_gateable(graph)
    assert_exports(graph, tmp_path)


def test_a_sequence_without_a_batch() -> None:
    graph = graph_of(net(on_every_step, nn.LSTM(5, 8, 2)), sequence()[0])
    assert table(assert_exact(graph)) == {"a channels": 5, "a inputs": 6, "r channels": 8, "r #2 channels": 8}


def test_the_captured_length_is_free() -> None:
    graph = build("LSTM of three layers both ways")
    assert graph.module()(sequence()[:, :2]).shape == (3, 2, 4)
    assert graph.module()(torch.cat([sequence()] * 3, 1)).shape == (3, 21, 4)


@pytest.mark.parametrize("name", [*NETWORKS, *CELLS, *WRITTEN])
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    made = {**{key: make for key, (make, _) in NETWORKS.items()}, **WRITTEN}
    model = models.randomise(made[name]() if name in made else net(*CELLS[name]))
    with torch.no_grad():
        expected = model(sequence())
        assert torch.allclose(capture(model, (sequence(),)).module()(sequence()), expected, atol=1e-6)


@pytest.mark.parametrize("name", WRITTEN)
def test_states_that_are_written_in_place_keep_their_width(name: str) -> None:
    groups = assert_exact(graph_of(WRITTEN[name](), sequence(), dynamic=FREE))
    assert table(groups) == {"a channels": 5, "a inputs": 6}


def test_dropout_between_layers_is_the_module_s_own() -> None:
    network = graph_of(net(on_every_step, nn.LSTM(5, 8, 2, dropout=0.5, batch_first=True)), sequence()).module()
    assert torch.equal(network(sequence()), network(sequence()))
    network.train()
    assert not torch.equal(network(sequence()), network(sequence()))


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)], ids=["LSTM", "GRU", "tanh"])
def test_a_layer_multiplies_inputs_and_states_at_every_step(layer: Callable[..., nn.Module], gates: int) -> None:
    graph = capture(Recurrent(lambda s, x: s.r(x)[0], r=layer(6, 8, batch_first=True)), (sequence(),))
    weights = gates * 8 * (6 + 8)
    assert cost(graph) == Cost(weights + 2 * gates * 8, 7 * weights, 4 * (weights + 2 * gates * 8))


def test_projections_are_multiplied_too() -> None:
    graph = capture(Recurrent(lambda s, x: s.r(x)[0], r=nn.LSTM(6, 8, batch_first=True, proj_size=3)), (sequence(),))
    assert cost(graph).macs == 7 * (4 * 8 * (6 + 3) + 3 * 8)


def test_a_state_that_the_user_gives_keeps_its_width() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.r, self.o = nn.Linear(6, 5), nn.GRU(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.o(self.r(self.a(x), h)[0])

    graph = graph_of(Stateful(), sequence(), torch.randn(1, 7, 8), dynamic=None)
    groups = assert_exact(graph)
    assert table(groups) == {"a channels": 5, "a inputs": 6}
    assert reasons(groups, "r.weight_hh_l0") == [
        (0, "gru", "its initial hidden state stays whole"),
        (1, "gru", "its initial hidden state stays whole"),
    ]


def test_what_reads_the_model_s_input_keeps_its_columns() -> None:
    groups = find_groups(
        graph_of(Recurrent(lambda s, x: s.o(s.r(x)[0]), r=nn.GRU(6, 8), o=nn.Linear(8, 4)), sequence())
    )
    assert table(groups) == {"r channels": 8}
    assert reasons(groups, "r.weight_ih_l0") == [(1, "gru", "it reads the model's input")]


def test_projections_stay_fewer_than_hidden_units() -> None:
    groups = find_groups(build("LSTM with projections"))
    assert ("lstm", "a projection needs more hidden units than outputs") in [
        reason[1:] for reason in reasons(groups, "r.weight_hr_l0")
    ]


def test_an_archive_keeps_the_length_free(tmp_path: Path) -> None:
    graph = build("GRU of two layers both ways")
    plan = KeepPlan.random(find_groups(graph), 0.5)
    export_pt2(shrink(graph, plan), tmp_path / "small.pt2", reference=masked(graph, plan))
    loaded = torch.export.load(tmp_path / "small.pt2").module()
    assert loaded(sequence()[:, :2]).shape == (3, 2, 4)


def test_onnx_has_no_projections_from_a_given_state(tmp_path: Path) -> None:
    def started(s: Any, x: Tensor) -> Tensor:
        hidden = s.a(x)[:, 0].unsqueeze(0)
        return s.r(s.a(x), (hidden[..., :3], torch.cat([hidden, hidden[..., :3]], -1)))[0]

    graph = graph_of(Recurrent(started, a=nn.Linear(6, 5), r=nn.LSTM(5, 8, proj_size=3, batch_first=True)), sequence())
    with pytest.raises(SurgeryError, match="LSTM with projections that starts from a given state"):
        export_onnx(graph, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_sequence_that_a_linear_layer_makes_loses_whole_features() -> None:
    """Its features vary over steps too, but the layer runs along those."""
    graph = captured(
        lambda s, x: s.h(s.r(torch.tanh(s.a(x)).unflatten(1, (5, 4)))[0].mean(1)),
        vector(),
        a=nn.Linear(6, 20),
        r=nn.GRU(4, 3, batch_first=True),
        h=nn.Linear(3, 3),
    )
    groups = find_groups(graph)
    assert table(groups) == {"a width": 4, "a inputs": 6, "r channels": 3}
    assert worst_error(graph, KeepPlan.random(groups, 0.5, 1)) <= 1e-10
