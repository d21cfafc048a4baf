"""Exports leave what they should: no data of another file, nothing on a full disk, no option that nobody reads."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import run_cli
from torch import Tensor, nn

from l0compress.errors import NotEqualError, RunError
from l0compress.export.files import has_external_data, size_on_disk
from l0compress.export.onnx import export_onnx
from l0compress.export.onnx_settings import OnnxSettings
from l0compress.export.pt2 import export_pt2
from l0compress.export.quantize import quantize_onnx
from l0compress.export.session import OnnxSession
from l0compress.graph import CapturedGraph, capture
from l0compress.verification.calls import Call
from l0compress.verification.equality import difference, verify


def layers() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), (torch.randn(2, 64),))


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file grows beyond this: what a full disk does to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestDataBesideTheFile:
    def test_they_go_when_a_file_without_any_takes_the_place(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        export_onnx(layers(), path, settings=OnnxSettings(largest_file_bytes=100))
        assert has_external_data(path) and (tmp_path / "model.onnx.data").exists()
        exported = export_onnx(layers(), path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
        assert exported.size_bytes == path.stat().st_size

    def test_a_file_that_is_nobodys_stays_and_does_not_count(self, tmp_path: Path) -> None:
        path, mine = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
        mine.write_bytes(b"mine")
        for _ in range(2):
            export_onnx(layers(), path)
        assert mine.read_bytes() == b"mine" and not has_external_data(path)
        assert size_on_disk(path) == path.stat().st_size


class TestFullDisk:
    @pytest.mark.parametrize(
        "options", [{}, {"settings": OnnxSettings(largest_file_bytes=100)}], ids=["one file", "data beside it"]
    )
    def test_onnx(self, tmp_path: Path, options: dict[str, int]) -> None:
        with room_for(2000), pytest.raises(RunError) as error:
            export_onnx(layers(), tmp_path / "model.onnx", **options)
        assert re.fullmatch(
            r"Cannot write '.*model\.onnx': (File too large|No space left on device)\. Nothing was written\. Make "
            r"room, or choose another folder\.",
            str(error.value),
        )
        assert not any(tmp_path.iterdir())

    def test_int8(self, tmp_path: Path) -> None:
        source = export_onnx(layers(), tmp_path / "float.onnx").path
        with room_for(2000), pytest.raises(RunError, match=r"^Cannot write '.*int8\.onnx': .*Nothing was written\."):
            quantize_onnx(source, tmp_path / "int8.onnx")
        assert [entry.name for entry in tmp_path.iterdir()] == ["float.onnx"]

    def test_pt2(self, tmp_path: Path) -> None:
        with room_for(2000), pytest.raises(RunError, match=r"^Cannot write '.*model\.pt2': File too large\. Nothing"):
            export_pt2(layers(), tmp_path / "model.pt2")
        assert not any(tmp_path.iterdir())


class Chooser(nn.Module):
    """Scores that are close together, and the choice among them."""

    def __init__(self, *, scores: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scores = nn.Linear(64, 256), scores
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(64) + 0.003 * torch.randn(256, 64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.layer(x)
        chosen = {"class": scores.argmax(-1)}
        return {"scores": scores, **chosen} if self.scores else chosen


class TestIntegersBesideRoundedWeights:
    @pytest.fixture
    def calls(self) -> list[Call]:
        return [Call((torch.randn(200, 64, generator=torch.Generator().manual_seed(1)),))]

    def int8(self, graph: CapturedGraph, folder: Path) -> OnnxSession:
        return OnnxSession(quantize_onnx(export_onnx(graph, folder / "float.onnx").path, folder / "int8.onnx"))

    def test_another_class_is_no_error_of_rounding(self, tmp_path: Path, calls: list[Call]) -> None:
        graph = capture(Chooser(scores=True), (torch.randn(2, 64),))
        rounded = self.int8(graph, tmp_path)
        with pytest.raises(NotEqualError, match="output 'class' differs"):
            verify(rounded, graph, inputs=calls, tolerance=0.1)
        assert verify(rounded, graph, inputs=calls, tolerance=0.1, rounded=True).max_relative > 1e-5
        assert difference(rounded, graph, inputs=calls, rounded=True).max_relative < 0.1

    def test_integers_alone_say_nothing(self, calls: list[Call]) -> None:
        graph = capture(Chooser(scores=False), (torch.randn(2, 64),))
        with pytest.raises(NotEqualError) as error:
            verify(graph.module(), graph, inputs=calls, rounded=True)
        assert str(error.value) == (
            "The two models are not equal: all outputs are integers, which say nothing about the size of a rounding. "
            "The result is refused and nothing was written. Return scores beside them, or leave the weights as they "
            "are."
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch", "1"), "Layers are timed only for bundles, but the format is 'onnx'. Nothing was written. Pass "
        "--format bundle, or omit --batch and --threads."),
        (("--threads", "1", "--format", "pt2"), "Layers are timed only for bundles, but the format is 'pt2'. Nothing "
        "was written. Pass --format bundle, or omit --batch and --threads."),
        (("--dtype", "int8", "--format", "pt2"), "Storage and engines apply to bundles, but the format is 'pt2'. "
        "Nothing was written. Pass --format bundle, or omit --dtype and --engines."),
        (("--calibrate", "8"), "--calibrate sets the number of samples for calibrating static int8, but the file is "
        "not quantized. Nothing was written. Pass --quantize int8-static, or omit it."),
        (("--calibrate", "8", "--quantize", "int8-dynamic"), "--calibrate sets the number of samples for calibrating "
        "static int8, but dynamic int8 needs none. Nothing was written. Pass --quantize int8-static, or omit it."),
    ],
)  # fmt: skip
def test_options_that_nobody_reads_are_refused(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    outcome = run_cli("export", tmp_path, *flags)
    assert outcome.exit_code == 2
    assert outcome.stderr.strip() == f"Error: {message}"
