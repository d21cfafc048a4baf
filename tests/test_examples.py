"""The examples run, and keep to what they say."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


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
