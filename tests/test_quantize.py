"""Int8 artifacts: weights within half a step of what they were, scores beside the float form, nothing half-done."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization
import pytest
import torch
from conftest import printed_json, run_cli, without_data
from onnx import numpy_helper
from quantized_weights import Reader, integer_operands, integer_products
from torch import nn

from l0compress.errors import InputError, NotEqualError, SurgeryError
from l0compress.export import quantize
from l0compress.export.onnx import export_onnx
from l0compress.export.onnx_settings import OnnxSettings
from l0compress.export.quantize import Int8, quantize_onnx, rms_difference
from l0compress.export.session import OnnxSession
from l0compress.export.unsharing import unshared
from l0compress.graph import CapturedGraph, capture
from l0compress.loading import load_data
from l0compress.pipeline import quantizing
from l0compress.verification.calls import Call


def two_layers() -> CapturedGraph:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 5))
    with torch.no_grad():
        # Channels of very different sizes: one scale for all of them would round the small ones to nothing.
        model[0].weight.mul_(torch.logspace(-4, 2, 64)[:, None])
    return capture(model, (torch.randn(2, 48),))


def convolution() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (torch.randn(2, 3, 6, 6),))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(two_layers(), tmp_path_factory.mktemp("exported") / "linear.onnx").path


@pytest.fixture
def linear_onnx(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported, tmp_path))


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.relu(self.layer(x)))


class ThereAndBack(Twice):
    """A weight that is read as it is and transposed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x)) @ self.layer.weight


class Tied(nn.Module):
    """Words, and scores of all words by the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.scores = nn.Embedding(40, 32), nn.Linear(32, 32), nn.Linear(32, 40)
        self.scores.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.scores(torch.relu(self.hidden(self.words(ids).mean(1))))


class Kernels(nn.Module):
    """A kernel that is a convolution's and a transposed convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv_transpose2d(torch.relu(self.layer(x)), self.layer.weight)


SHARED = {
    "a layer twice": (Twice, lambda: torch.randn(16, 32)),
    "a weight both ways": (ThereAndBack, lambda: torch.randn(16, 32)),
    "tied embeddings": (Tied, lambda: torch.randint(0, 40, (16, 6))),
    "a kernel both ways": (Kernels, lambda: torch.randn(16, 8, 6, 6)),
}


def noise(num_samples: int, *shape: int) -> Call:
    return Call((torch.randn(num_samples, *shape, generator=torch.Generator().manual_seed(7)),))


def negated_(model: onnx.ModelProto) -> None:
    """The last product has another sign."""
    for entry in (integer_products(model)[-1].scale, last_bias(model)):
        entry.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(entry), entry.name))


def shortened_(model: onnx.ModelProto) -> None:
    """The last bias has one number too few."""
    bias = last_bias(model)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[1:], bias.name))


def last_bias(model: onnx.ModelProto) -> onnx.TensorProto:
    """What is added to the last product of a dynamic int8 form."""
    return Reader(model).constant_of(model.graph.node[-1])


def spoiling(fault: Callable[[onnx.ModelProto], None]) -> Callable[..., None]:
    """ONNX Runtime's quantizer with a fault of its own."""

    def quantized(source: Path, path: Path, **options: Any) -> None:
        onnxruntime.quantization.quantize_dynamic(source, path, **options)
        model = onnx.load(path)
        fault(model)
        onnx.save(model, path)

    return quantized


class TestQuantizeOnnx:
    def test_every_weight_is_within_half_a_step_of_its_channels_scale(self, linear_onnx: Path, tmp_path: Path) -> None:
        path = quantize_onnx(linear_onnx, tmp_path / "int8.onnx")
        exact = {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(linear_onnx).graph.initializer}
        first, _ = integer_products(onnx.load(path))
        weight, scale = numpy_helper.to_array(first.values), numpy_helper.to_array(first.scale)
        assert weight.dtype == np.int8 and scale.shape == (64,)
        rounding = np.abs(weight * scale - exact["0.weight"].T)
        assert (rounding <= scale * 0.5000001).all()
        assert np.abs(weight).max(axis=0).min() == 127

    @pytest.mark.parametrize("calibrated", [False, True], ids=["dynamic", "static"])
    def test_it_computes_nearly_the_same(self, linear_onnx: Path, tmp_path: Path, calibrated: bool) -> None:
        calls = [noise(64, 48)] if calibrated else None
        path = quantize_onnx(linear_onnx, tmp_path / "int8.onnx", calibration=calls)
        exact, rounded = (OnnxSession(file)(*noise(9, 48).args)["output_0"] for file in (linear_onnx, path))
        relative = float((exact - rounded).abs().max() / exact.abs().max())
        assert 0 < relative < 0.05

    def test_a_static_convolution_runs_on_integers(self, tmp_path: Path) -> None:
        source = export_onnx(convolution(), tmp_path / "conv.onnx").path
        path = quantize_onnx(source, tmp_path / "int8.onnx", calibration=[noise(16, 3, 6, 6)])
        (weight,) = integer_operands(onnx.load(path))
        assert weight.values.data_type == onnx.TensorProto.INT8
        assert list(weight.values.dims) == [8, 3, 3, 3] and list(weight.scale.dims) == [8]
        assert Int8().method_for(source) == "static"

    def test_networks_without_convolutions_are_dynamic_by_default(self, linear_onnx: Path) -> None:
        assert Int8().method_for(linear_onnx) == "dynamic"
        assert Int8("static").method_for(linear_onnx) == "static"

    def test_weights_beside_the_file_stay_beside_it(self, tmp_path: Path) -> None:
        source = export_onnx(two_layers(), tmp_path / "large.onnx", settings=OnnxSettings(largest_file_bytes=100)).path
        path = quantize_onnx(source, tmp_path / "int8.onnx")
        assert path.with_name("int8.onnx.data").exists()
        call = noise(3, 48)
        exact, rounded = OnnxSession(source)(*call.args)["output_0"], OnnxSession(path)(*call.args)["output_0"]
        assert float((exact - rounded).abs().max() / exact.abs().max()) < 0.03

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("calibrated", [False, True], ids=["dynamic", "static"])
    @pytest.mark.parametrize("name", SHARED)
    def test_a_weight_with_several_readers_is_right_for_each(self, tmp_path: Path, name: str, calibrated: bool) -> None:
        torch.manual_seed(0)
        module, inputs = SHARED[name]
        model, x = module().eval(), inputs()
        source = export_onnx(capture(model, (x,)), tmp_path / "float.onnx").path
        path = quantize_onnx(source, tmp_path / "int8.onnx", calibration=[Call((x,))] if calibrated else None)
        with torch.no_grad():
            expected = model(x)
        rounded = OnnxSession(path)(x)["output_0"]
        assert 0 < float((rounded - expected).abs().max() / expected.abs().max()) < 0.05

    def test_a_layer_that_is_called_twice_is_stored_once(self, tmp_path: Path) -> None:
        source = export_onnx(capture(Twice(), (torch.randn(4, 32),)), tmp_path / "float.onnx").path
        weights = onnx.load(quantize_onnx(source, tmp_path / "int8.onnx")).graph.initializer
        assert [entry.data_type for entry in weights if list(entry.dims) == [32, 32]] == [onnx.TensorProto.INT8]

    def test_a_layer_that_is_called_twice_has_a_bias_for_each_of_its_inputs(self, tmp_path: Path) -> None:
        """A bias is rounded by the scale of the input, and ONNX Runtime 1.20 took that of the first call for both."""
        source = export_onnx(capture(Twice(), (torch.randn(4, 32),)), tmp_path / "float.onnx").path
        products = [node for node in unshared(onnx.load(source)).graph.node if node.op_type == "Gemm"]
        assert len({node.input[1] for node in products}) == 1
        assert len({node.input[2] for node in products}) == 2

    def test_shared_weights_beside_the_file(self, tmp_path: Path) -> None:
        x = torch.randn(4, 32)
        source = export_onnx(
            capture(Twice(), (x,)), tmp_path / "large.onnx", settings=OnnxSettings(largest_file_bytes=100)
        ).path
        path = quantize_onnx(source, tmp_path / "int8.onnx")
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "int8.onnx", "int8.onnx.data", "large.onnx", "large.onnx.data"
        ]  # fmt: skip
        assert rms_difference(OnnxSession(path)(x)["output_0"], OnnxSession(source)(x)["output_0"]) < 0.05

    @pytest.mark.parametrize(
        "fault, error, message",
        [
            (negated_, NotEqualError, r"computes something else: output 'output_0' differs .* by 200% of its size"),
            (shortened_, SurgeryError, r"cannot run the int8 form of linear\.onnx"),
        ],
    )
    def test_what_the_quantizer_spoils_is_refused(
        self, linear_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault, error, message
    ) -> None:
        monkeypatch.setattr(quantize, "quantize_dynamic", spoiling(fault))
        with pytest.raises(error, match=message + r".*[Nn]othing was written\."):
            quantize_onnx(linear_onnx, tmp_path / "int8.onnx")
        assert sorted(tmp_path.iterdir()) == [linear_onnx]

    def test_a_calibration_without_calls_is_refused(self, linear_onnx: Path, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError, match=r"cannot quantize linear\.onnx: .*Nothing was written\."):
            quantize_onnx(linear_onnx, tmp_path / "int8.onnx", calibration=[])

    @pytest.mark.parametrize("method, num_samples", [("int4", 8), ("static", 0)])
    def test_what_cannot_be_done_is_refused(self, method: str, num_samples: int) -> None:
        with pytest.raises(InputError, match=r"Nothing was written\."):
            Int8(method, num_samples)


def test_an_exported_file_suits_the_quantizer_as_it_is(linear_onnx: Path, tmp_path: Path) -> None:
    """Shapes that are declared for weights too stop ONNX Runtime's quantizer, which transposes weights."""
    onnxruntime.quantization.quantize_dynamic(linear_onnx, tmp_path / "int8.onnx")
    declared = {value.name for value in onnx.load(linear_onnx).graph.value_info}
    assert declared.isdisjoint(entry.name for entry in onnx.load(linear_onnx).graph.initializer)


class TestExport:
    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("quantize", ["int8", "int8-dynamic", "int8-static"])
    def test_scores_of_both_forms_are_told_and_verify_knows_what_int8_is(
        self, finished: Path, tmp_path: Path, quantize: str
    ) -> None:
        path = tmp_path / "net.onnx"
        exported = printed_json("export", finished / "run", "--quantize", quantize, "-o", path)
        method = "static" if quantize == "int8-static" else "dynamic"
        assert exported["quantization"] == f"int8 {method}"
        scores, result = exported["scores"], json.loads((finished / "run/result.json").read_text())
        assert scores["part"] == "test" and scores["float"]["metric"] == result["test"]["small"]["metric"]
        assert scores["int8"]["num_samples"] == 60 and scores["int8"]["loss"] != scores["float"]["loss"]
        verified = printed_json("verify", path, "--against", finished / "run")
        assert verified["quantization"] == f"int8 {method}"
        assert 1e-5 < verified["max_relative"] <= verified["outputs"][0]["tolerance"] < 0.2

    def test_for_people(self, finished: Path, tmp_path: Path) -> None:
        outcome = run_cli("export", finished / "run", "--quantize", "int8", "-o", tmp_path / "net.onnx")
        first, second, third, fourth = outcome.stdout.splitlines()
        assert re.fullmatch(
            r"the float form equals the masked dense model; int8 dynamic differs from it by at most \d+\.\d\d% of the "
            r"largest output",
            first,
        )
        assert re.fullmatch(r"test accuracy on 60 samples: \d\.\d{4} in float, \d\.\d{4} in int8", second)
        assert third.startswith(f"wrote {tmp_path / 'net.onnx'} (")
        assert fourth.startswith("Next: l0compress ")

    def test_another_models_int8_file_is_found_out(self, finished: Path, tmp_path: Path) -> None:
        printed_json("export", finished / "run", "--quantize", "int8", "-o", tmp_path / "net.onnx")
        model = onnx.load(tmp_path / "net.onnx")
        weight = integer_products(model)[0].values
        weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
        onnx.save(model, tmp_path / "net.onnx")
        outcome = run_cli("verify", tmp_path / "net.onnx", "--against", finished / "run")
        assert outcome.exit_code == 1 and outcome.stderr.startswith("Error: The two models are not equal: ")

    def test_the_data_are_read_once(self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[str] = []
        monkeypatch.setattr(quantizing, "load_data", lambda source: read.append(source.name) or load_data(source))
        printed_json("export", finished / "run", "--quantize", "int8-static", "-o", tmp_path / "net.onnx")
        assert read == [str(finished / "blobs.npz")]

    @pytest.mark.slow
    def test_bench_goes_on_without_an_int8_form_that_is_spoiled(
        self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quantize, "quantize_dynamic", spoiling(negated_))
        run = shutil.copytree(finished / "run", tmp_path / "run")
        measured = printed_json("bench", run, "--batch", "1", "--threads", "1")
        assert [candidate["name"] for candidate in measured["bench"]["candidates"]] == [
            "dense",
            "small",
            "small bundle",
        ]
        assert measured["int8_metrics"] == {}
        assert [note.split(":")[0] for note in measured["notes"]] == ["No int8 form of dense", "No int8 form of small"]

    def test_only_onnx_is_quantized(self, finished: Path, tmp_path: Path) -> None:
        outcome = run_cli(
            "export", finished / "run", "--format", "pt2", "--quantize", "int8", "-o", tmp_path / "net.pt2"
        )
        assert outcome.exit_code == 2
        assert outcome.stderr.strip() == (
            "Error: Only ONNX files are quantized, but the format is 'pt2'. Nothing was written. Choose --format onnx, "
            "or leave the option out."
        )

    def test_data_that_has_gone_leaves_nothing_behind(self, finished: Path, tmp_path: Path) -> None:
        without_data(finished / "run", tmp_path / "run")
        before = sorted(tmp_path.rglob("*"))
        outcome = run_cli("export", tmp_path / "run", "--quantize", "int8")
        assert outcome.exit_code == 2 and "gone.npz" in outcome.stderr
        assert sorted(tmp_path.rglob("*")) == before
