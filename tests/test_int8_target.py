"""A target in bytes of the int8 file: what is counted is what ONNX Runtime's quantizer writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from clouds import QUICK, blobs, trained_mlp
from models import randomise
from onnx import numpy_helper
from torch import Tensor, nn

from l0compress import Budget, gate
from l0compress.data import Data
from l0compress.errors import TargetError
from l0compress.export.onnx import export_onnx
from l0compress.export.quantize import Int8, quantize_onnx
from l0compress.graph import CapturedGraph, KeepPlan, capture, cost, find_groups, nonzero_cost, shrink
from l0compress.graph.groups.resource import Counted
from l0compress.training.finetune import finetune
from l0compress.training.methods.fisher import marginal_cost
from l0compress.training.targets import Target, parse_target
from l0compress.verification.calls import Call

FLOATS, INT8, UINT8, INT32 = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32
)  # fmt: skip


def linear() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5)), torch.randn(16, 12)


def convolutions() -> tuple[nn.Module, Tensor]:
    layers = (
        nn.Conv2d(2, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    return nn.Sequential(*layers), torch.randn(16, 2, 8, 8)


class Words(nn.Module):
    """A table of words, a layer norm, and a layer on every word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(40, 16), nn.LayerNorm(16)
        self.hidden, self.scores = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.scores(torch.relu(self.hidden(self.norm(self.words(ids)))).mean(1))


class Pixels(nn.Module):
    """Pixels that attend: a convolution, places that are added, a norm, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(1, 8, 2, 2), nn.Parameter(torch.randn(1, 16, 8))
        self.norm, self.reader, self.scores = nn.LayerNorm(8), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        read, _ = self.reader(self.norm(self.patches(x).flatten(2).transpose(1, 2) + self.places))
        return self.scores(read)


NETWORKS = {
    "linear": linear,
    "convolutions": convolutions,
    "words": lambda: (Words(), torch.randint(0, 40, (16, 6))),
    "pixels": lambda: (Pixels(), torch.randn(16, 1, 8, 8)),
}


def captured(name: str) -> tuple[CapturedGraph, Tensor]:
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    return capture(randomise(model).eval(), (x,)), x


def int8_file(graph: CapturedGraph, x: Tensor, folder: Path) -> Path:
    exact = export_onnx(graph, folder / "float.onnx").path
    static = Int8().method_for(exact) == "static"
    return quantize_onnx(exact, folder / "int8.onnx", calibration=[Call((x,))] if static else None, sample=Call((x,)))


def weight_bytes(path: Path) -> int:
    """Bytes of weights, biases and norms with their scales; those of activations, one number each, are left out."""
    entries = {entry.name: entry for entry in onnx.load(path).graph.initializer}
    found = [entry for entry in entries.values() if entry.data_type in (FLOATS, INT8, UINT8, INT32)]
    # A scale or zero point of one number belongs to a weight where there are quantized values of its name.
    quantized = [name for name in entries if name.endswith("_quantized")]
    stems = [*quantized, *(name.removesuffix("_quantized") for name in quantized)]
    owned = {stem + suffix for stem in stems for suffix in ("_scale", "_zero_point")}
    return sum(numpy_helper.to_array(entry).nbytes for entry in found if list(entry.dims) or entry.name in owned)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_counted_is_what_the_file_holds(name: str, tmp_path: Path) -> None:
    graph, x = captured(name)
    assert cost(graph).int8_bytes == weight_bytes(int8_file(graph, x, tmp_path))


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["linear", "convolutions"])
def test_what_is_not_counted_does_not_depend_on_the_plan(name: str, tmp_path: Path) -> None:
    graph, x = captured(name)
    groups = find_groups(graph)
    inputs = [move for group in groups.groups if group.kind == "inputs" for move in group.moves]
    plan = KeepPlan.random(groups, 0.4, 1)
    plan.keep[inputs] = True
    small = shrink(graph, plan)
    assert cost(small).int8_bytes < 0.6 * cost(graph).int8_bytes
    containers = [
        int8_file(each, x, tmp_path / kind).stat().st_size - cost(each).int8_bytes
        for kind, each in {"dense": graph, "small": small}.items()
        if (tmp_path / kind).mkdir() is None
    ]
    assert abs(containers[0] - containers[1]) < 100


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_predicts_what_is_left(name: str) -> None:
    groups = find_groups(captured(name)[0])
    for seed in range(3):
        plan = KeepPlan.random(groups, 0.5, seed)
        left = cost(shrink(groups.graph, plan)).int8_bytes
        assert plan.cost.int8_bytes == left
        assert float(groups.expected_cost(plan.keep.double(), "int8_bytes")) == pytest.approx(left, abs=1e-6)


def test_a_layer_norm_that_lost_channels_is_filled_up_in_the_file(tmp_path: Path) -> None:
    graph, x = captured("words")
    groups = find_groups(graph)
    channels, _ = groups.groups
    keep = torch.ones(groups.num_moves, dtype=torch.bool)
    keep[list(channels.moves)[:10]] = False
    small = shrink(graph, KeepPlan.from_keep(groups, keep))
    assert cost(small).int8_bytes == weight_bytes(int8_file(small, x, tmp_path))


def test_a_unit_saves_its_weights_its_scale_its_bias_and_what_reads_it() -> None:
    groups = find_groups(capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.zeros(2, 4),)))
    (hidden,) = [group for group in groups.groups if group.kind == "channels"]
    assert marginal_cost(Counted(groups, "int8_bytes"))[list(hidden.moves)].tolist() == [4 + 5 + 4 + 2] * 8


def test_zeros_are_stored_like_other_weights() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data[:2] = 0
    graph = capture(layer, (torch.zeros(2, 4),))
    assert nonzero_cost(graph).int8_bytes == cost(graph).int8_bytes == 12 + 3 * (5 + 4)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(blobs(), blobs(seed=1), blobs(seed=2))


@pytest.mark.parametrize("method", ["l0", "fisher", "magnitude"])
def test_a_run_keeps_to_it_and_uses_it(data: Data, method: str) -> None:
    graph = capture(trained_mlp(data.train), (data.train.inputs[0][:2],))
    result = finetune(graph, data, "int8-bytes=0.5", settings=replace(QUICK, epochs=2, method=method))
    dense, left = cost(graph).int8_bytes, cost(result.small).int8_bytes
    # 8 x 16 + 16 x 3 weights, and 9 bytes of scale and bias for each of 19 outputs.
    assert dense == 347 and 0.85 * 0.5 * dense < left <= 0.5 * dense


def test_it_is_written_as_a_flag_or_as_a_key() -> None:
    assert parse_target("int8-bytes=0.25") == Target.of({"int8_bytes": 0.25}) == Target("int8_bytes", 0.25, True)
    assert parse_target("int8_bytes=1.5MB") == Target("int8_bytes", 1_500_000, False)
    assert str(parse_target("int8-bytes=0.25")) == "int8_bytes=0.25"


MESSAGE = (
    "Target int8_bytes: an int8 file stores a zero as it stores any other weight, so it does not shrink with single "
    "weights. Nothing was changed. Pass --granularity structured, or name params, macs or bytes."
)


@pytest.mark.parametrize("granularity", ["weights", "both"])
def test_single_weights_save_nothing_of_it(granularity) -> None:
    gated = gate(
        capture(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (torch.zeros(2, 4),)), granularity=granularity
    )
    with pytest.raises(TargetError) as error:
        Budget(gated, {"int8_bytes": 0.5})
    assert str(error.value) == MESSAGE


@pytest.mark.parametrize("method", ["magnitude", "layer-magnitude"])
def test_nor_do_those_of_smallest_magnitude(data: Data, method: str) -> None:
    graph = capture(trained_mlp(data.train), (data.train.inputs[0][:2],))
    with pytest.raises(TargetError) as error:
        finetune(graph, data, "int8-bytes=0.5", settings=replace(QUICK, method=method, granularity="weights"))
    assert str(error.value) == MESSAGE


def test_what_cannot_be_reached_is_told_in_its_unit() -> None:
    gated = gate(capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.zeros(2, 4),)))
    with pytest.raises(TargetError) as error:
        Budget(gated, {"int8_bytes": 0.1})
    # One input and one unit: 1 + 2 weights, and 9 bytes for each of 3 outputs.
    assert str(error.value) == (
        "Target int8_bytes=0.1: at most 13 bytes of int8 cannot be reached. With everything removed that can be "
        "removed, 30 of 138 stay (0.2174). Nothing was changed. Ask for int8_bytes=0.219 or more."
    )
