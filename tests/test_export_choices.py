"""What a user chooses about an ONNX file: the version of its operators, how it is rounded, and what runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from conftest import printed_json, run_cli
from torch import nn
from torch.onnx._internal.exporter._registration import onnxscript_apis as apis

from l0compress.errors import InputError, NotEqualError, SurgeryError
from l0compress.export.half import Half, halve_onnx
from l0compress.export.known_operators import known_operators
from l0compress.export.onnx import export_onnx
from l0compress.export.onnx_settings import OnnxSettings
from l0compress.export.providers import OnProvider, available_providers
from l0compress.export.session import OnnxSession
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.measure.bench import bench
from l0compress.verification.equality import verify


def mlp() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3)), (torch.randn(2, 6),))


def convolutions() -> CapturedGraph:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return capture(net.eval(), (torch.randn(2, 3, 8, 8),))


def transformer() -> CapturedGraph:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    return capture(layer.eval(), (torch.randn(2, 5, 8),))


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0][:, -1]


def recurrent() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(Last().eval(), (torch.randn(2, 5, 4),))


def test_operators_that_can_be_translated_are_read_once() -> None:
    def names() -> list[tuple[str, str, bool]]:
        return [(found.qualified_name, found.name, found.is_complex) for found in apis.get_torchlib_ops()]

    with known_operators():
        first, again, inside = apis.get_torchlib_ops(), apis.get_torchlib_ops(), names()
    assert first is again and len(first) > 100
    assert apis.get_torchlib_ops() is not first and names() == inside


NETWORKS = (mlp, convolutions, transformer, recurrent)


class TestOpset:
    @pytest.mark.slow
    @pytest.mark.parametrize("opset", [18, 23])
    @pytest.mark.parametrize("network", NETWORKS)
    def test_the_file_has_the_version_and_is_equal(
        self, network: Callable[[], CapturedGraph], opset: int, tmp_path: Path
    ) -> None:
        exported = export_onnx(network(), tmp_path / "model.onnx", settings=OnnxSettings(opset=opset))
        (default,) = [one.version for one in onnx.load(exported.path).opset_import if one.domain == ""]
        assert default == opset
        assert exported.equality.max_relative < 1e-5

    @pytest.mark.parametrize("opset", [12, 0, 10_000, True, "18", 18.0])
    def test_a_version_that_there_is_not(self, opset: object) -> None:
        newest = onnx.defs.onnx_opset_version()
        with pytest.raises(InputError) as error:
            OnnxSettings(opset=opset)  # pyright: ignore[reportArgumentType]
        assert str(error.value) == f"Opset {opset!r}: expected 13 to {newest}. Nothing was written."

    def test_what_cannot_be_converted_downward_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError) as error:
            export_onnx(convolutions(), tmp_path / "model.onnx", settings=OnnxSettings(opset=17))
        assert str(error.value) == (
            "the graph cannot be converted to ONNX opset 17: the converter stopped at 18. Nothing was written. Pass "
            "--opset 18 (in Python OnnxSettings(opset=18)), or omit it."
        )
        assert not list(tmp_path.iterdir())


class Loud(nn.Module):
    """Values that float16 does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 4), 1e5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class TestHalf:
    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    @pytest.mark.parametrize("network", NETWORKS)
    def test_it_computes_about_the_same(self, network: Callable[[], CapturedGraph], dtype: str, tmp_path: Path) -> None:
        graph = network()
        exact = export_onnx(graph, tmp_path / "float.onnx").path
        half = OnnxSession(halve_onnx(exact, tmp_path / "half.onnx", Half(dtype)))
        assert {spec.dtype for spec in half.inputs} == {torch.float32}
        assert verify(half, graph, tolerance=2e-2, rounded=True).max_relative < 2e-2

    def test_the_weights_take_half_of_the_bytes(self, tmp_path: Path) -> None:
        exported = export_onnx(capture(nn.Linear(256, 256), (torch.randn(2, 256),)), tmp_path / "float.onnx")
        for dtype in ("float16", "bfloat16"):
            path = halve_onnx(exported.path, tmp_path / f"{dtype}.onnx", Half(dtype))
            assert path.stat().st_size < 0.52 * exported.size_bytes

    def test_weights_beside_the_file_stay_beside_it(self, tmp_path: Path) -> None:
        graph = capture(nn.Linear(256, 256), (torch.randn(2, 256),))
        exact = export_onnx(graph, tmp_path / "float.onnx", settings=OnnxSettings(largest_file_bytes=100)).path
        path = halve_onnx(exact, tmp_path / "half.onnx")
        assert 2 * 256 * 256 <= path.with_name("half.onnx.data").stat().st_size < 3 * 256 * 256
        assert verify(OnnxSession(path), graph, tolerance=1e-2, rounded=True)

    def test_values_out_of_range_are_refused(self, tmp_path: Path) -> None:
        exact = export_onnx(capture(Loud(), (torch.randn(2, 4),)), tmp_path / "float.onnx").path
        with pytest.raises(NotEqualError) as error:
            halve_onnx(exact, tmp_path / "half.onnx")
        assert str(error.value) == (
            "The float16 form of float.onnx computes something else: output 'output_0' differs from the float form's "
            "by 34% of its size, and 5% is too much for rounding. The result is refused and nothing was written. "
            "Export it without --dtype."
        )
        assert [file.name for file in tmp_path.iterdir()] == ["float.onnx"]

    def test_another_dtype(self) -> None:
        with pytest.raises(InputError) as error:
            Half("float8")
        assert str(error.value) == (
            "Unknown dtype 'float8' of an ONNX file: expected float16 or bfloat16. Nothing was written."
        )


class TestProviders:
    def test_an_unknown_one(self, tmp_path: Path) -> None:
        path = export_onnx(mlp(), tmp_path / "model.onnx").path
        with pytest.raises(InputError) as error:
            OnnxSession(path, provider="abacus")
        known = ", ".join(available_providers())
        assert str(error.value) == (
            f"Provider 'abacus' does not run ONNX files here; what does: {known}. Nothing was run. Install the build "
            "of onnxruntime that has it, or for openvino pip install 'l0compress[openvino]'."
        )

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("network", NETWORKS)
    def test_openvino_computes_the_same(self, network: Callable[[], CapturedGraph], tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        graph = network()
        path = export_onnx(graph, tmp_path / "model.onnx").path
        session = OnnxSession(path, threads=1, provider="openvino")
        assert verify(session, graph).max_relative < 1e-5
        assert [vars(spec) for spec in session.inputs] == [vars(spec) for spec in OnnxSession(path).inputs]

    def test_openvino_says_what_it_cannot_run(self, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        session = OnnxSession(export_onnx(mlp(), tmp_path / "model.onnx").path, provider="openvino")
        with pytest.raises(InputError, match=r"^.* cannot run on these inputs: .* It takes input float32 \(any, 6\)"):
            session(torch.zeros(2, 7))

    @pytest.mark.slow
    def test_signals_are_handled_after_openvino(self, tmp_path: Path) -> None:
        """In a process of its own, which a signal would end."""
        pytest.importorskip("openvino")
        path = export_onnx(mlp(), tmp_path / "model.onnx").path
        program = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from l0compress.export.providers import opened\n"
            "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
            "first, second = (opened(Path(sys.argv[1]), 'openvino', threads=1, disabled=()) for _ in range(2))\n"
            "del first\n"
            "del second\n"
            "os.kill(os.getpid(), signal.SIGUSR1)\n"
        )
        ran = subprocess.run([sys.executable, "-W", "ignore", "-c", program, path], capture_output=True, text=True)
        assert (ran.returncode, ran.stdout) == (0, "handled\n")

    def test_they_are_timed_in_turns(self, tmp_path: Path) -> None:
        path = export_onnx(mlp(), tmp_path / "model.onnx").path
        candidates = {name: OnProvider(path, name) for name in available_providers()}
        report = bench(candidates, batch_sizes=(1,), rounds=3, threads=1)
        assert {timing.name for timing in report.timings} == set(available_providers())
        assert set(report.file_bytes.values()) == {path.stat().st_size}


class TestCommands:
    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_a_file_in_16_bits_is_scored_verified_and_timed(self, finished: Path, tmp_path: Path, dtype: str) -> None:
        shutil.copytree(finished / "run", tmp_path / "run")
        exported = printed_json("export", tmp_path / "run", "--dtype", dtype)
        assert exported["path"] == str(tmp_path / f"run/model.{dtype}.onnx")
        assert set(exported["scores"]) == {"part", "score", "float", dtype}
        assert 0 < exported["equality"]["max_relative"] < 0.05
        verified = printed_json("verify", exported["path"], "--against", tmp_path / "run")
        assert verified["equal"] is True and verified["quantization"] == dtype
        timed = printed_json("bench", exported["path"], "--against", tmp_path / "run", "--batch", "1")
        assert f"small {dtype}" in timed["metrics"]

    @pytest.mark.slow
    def test_an_opset(self, finished: Path, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        run_cli("export", finished / "run", "--opset", "21", "-o", path)
        assert [one.version for one in onnx.load(path).opset_import if one.domain == ""] == [21]

    @pytest.mark.slow
    def test_openvino(self, finished: Path, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        path, against = tmp_path / "model.onnx", ("--against", finished / "run", "--provider", "openvino")
        run_cli("export", finished / "run", "-o", path)
        assert printed_json("verify", path, *against)["equal"] is True
        outcome = run_cli("bench", path, *against, "--batch", "1")
        assert "ONNX files are run by the provider openvino." in outcome.stdout

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("--dtype", "int8"), "--dtype int8 is for bundles: of an ONNX file weights and products become int8 "
            "together. Nothing was written. Pass --quantize int8."),
            (("--dtype", "float16", "--quantize", "int8"), "--quantize int8 and --dtype float16 exclude each other. "
            "Nothing was written. Omit one of the two."),
            (("--opset", "18", "--format", "pt2"), "Only ONNX files are written for an opset, but the format is "
            "'pt2'. Nothing was written. Choose --format onnx, or leave the option out."),
        ],
    )  # fmt: skip
    def test_what_does_not_go_together(self, finished: Path, flags: tuple[str, ...], message: str) -> None:
        outcome = run_cli("export", finished / "run", *flags)
        assert outcome.exit_code == 2
        assert outcome.stderr.strip() == f"Error: {message}"
