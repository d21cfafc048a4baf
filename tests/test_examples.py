"""The examples run, and keep to what they say."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import onnxruntime
import pytest
import torchvision_without_ops

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.slow
def test_train_then_compress_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, compress = importlib.import_module("digits_train"), importlib.import_module("digits_compress")
    monkeypatch.setattr(train, "EPOCHS", 2)
    train.main(tmp_path)
    compress.main(tmp_path, epochs=3)
    printed = capsys.readouterr().out
    dense, small, limit = (
        int(number.replace(",", ""))
        for number in re.search(r"MACs +([\d,]+) -> +([\d,]+) \(at most ([\d,]+)\)", printed).groups()
    )
    assert limit == dense // 4
    assert 0.97 * limit < small <= limit
    assert (tmp_path / "small.onnx").is_file()


LOOPS = {
    "trainer": ("transformers", {"samples_seen": 256, "epochs": 1}),
    "lightning_loop": ("lightning", {"epochs": 2}),
    "yolo_train": ("ultralytics", {"images": 8, "epochs": 2}),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_other_peoples_loops_end_in_a_verified_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library, options = LOOPS[name]
    if importlib.util.find_spec("torchvision"):  # transformers and ultralytics import it where it is installed
        torchvision_without_ops.load()
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    pytest.importorskip(library)
    importlib.import_module(name).main(tmp_path, **options)
    printed = capsys.readouterr().out
    dense, small = (
        int(number.replace(",", "")) for number in re.search(r"MACs: ([\d,]+) -> ([\d,]+)", printed).groups()
    )
    assert small < 0.7 * dense
    assert float(re.search(r"small.onnx: equal within (\S+)", printed)[1]) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
    assert session.get_outputs()


@pytest.mark.parametrize("name", LOOPS)
def test_what_is_new_in_a_loop_is_five_lines_of_less_than_eighty(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) < 80
    assert sorted(match[1] for line in lines if (match := re.search(r"# (\d)$", line))) == list("12345")
