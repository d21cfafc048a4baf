"""Files without zeros: the same model, fewer bytes, and no promise of speed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import printed_json, run_cli, save_pt2, sign_again_
from torch import nn

from l0compress.errors import InputError
from l0compress.export.onnx import export_onnx
from l0compress.export.onnx_settings import OnnxSettings
from l0compress.export.session import OnnxSession
from l0compress.export.sparse_initializers import store_sparsely_
from l0compress.graph import capture


def network(density: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 3))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(60, 40) < density)
    return model.eval()


@pytest.mark.parametrize("density", [0.3, 0.05, 0.002])
def test_the_model_is_the_same_and_its_file_smaller(tmp_path: Path, density: float) -> None:
    model, x = network(density), torch.randn(7, 40)
    path = export_onnx(capture(model, (torch.randn(2, 40),)), tmp_path / "model.onnx").path
    stored = store_sparsely_(path)
    assert stored.names == ("0.weight",)
    assert stored.bytes_after == path.stat().st_size < stored.bytes_before
    onnx.checker.check_model(path)
    np.testing.assert_allclose(OnnxSession(path)(x)["output_0"], model(x).detach(), rtol=1e-5, atol=1e-6)


def test_the_indices_are_those_of_the_nonzeros(tmp_path: Path) -> None:
    model = network(0.05)
    path = export_onnx(capture(model, (torch.randn(2, 40),)), tmp_path / "model.onnx").path
    store_sparsely_(path)
    (entry,) = onnx.load(path).graph.sparse_initializer
    expected = model[0].weight.detach().numpy()
    assert list(entry.dims) == [60, 40]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(entry.indices), np.flatnonzero(expected))
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(entry.values), expected[expected != 0])


def test_weights_without_enough_zeros_stay_as_they_are(tmp_path: Path) -> None:
    path = export_onnx(capture(network(0.4), (torch.randn(2, 40),)), tmp_path / "model.onnx").path
    stored = store_sparsely_(path)
    assert stored.names == () and stored.bytes_after <= stored.bytes_before


@pytest.mark.slow
def test_weights_beside_the_file_are_refused(tmp_path: Path) -> None:
    path = export_onnx(
        capture(network(0.05), (torch.randn(2, 40),)),
        tmp_path / "model.onnx",
        settings=OnnxSettings(largest_file_bytes=10),
    ).path
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"are in a separate file, where none can be sparse\. Nothing was changed\."):
        store_sparsely_(path)
    assert path.read_bytes() == before


class TestExport:
    def test_it_says_that_the_file_is_smaller_and_not_faster(self, tmp_path: Path, finished: Path) -> None:
        shutil.copytree(finished / "run", tmp_path / "run")
        sparse = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
        with torch.no_grad():
            sparse[0].weight.mul_(torch.arange(64)[:, None] % 16 == 0)
        for name in ("small.pt2", "masked.pt2"):
            save_pt2(sparse, (torch.zeros(2, 8),), tmp_path / "run" / name)
        sign_again_(tmp_path / "run")
        outcome = run_cli("export", tmp_path / "run", "--sparse-weights")
        first, second, third, fourth, fifth = outcome.stdout.splitlines()
        assert first.startswith("equal to the masked dense model")
        assert second.startswith("1 weights are stored sparsely: ")
        assert third == "ONNX Runtime makes them dense again when it loads the file: it is smaller, not faster"
        assert fourth.startswith(f"wrote {tmp_path / 'run/model.onnx'}")
        assert fifth.startswith("Next: l0compress ")
        assert printed_json("verify", tmp_path / "run/model.onnx", "--against", tmp_path / "run")["equal"] is True

    def test_a_dense_model_gains_nothing_and_is_told_so(self, tmp_path: Path, finished: Path) -> None:
        outcome = run_cli("export", finished / "run", "--sparse-weights", "-o", tmp_path / "net.onnx")
        assert "no weight has enough zeros to be stored sparsely" in outcome.stdout

    @pytest.mark.parametrize("more", [("--format", "pt2"), ("--quantize", "int8"), ("--dtype", "float16")])
    def test_what_does_not_go_together(self, finished: Path, tmp_path: Path, more: tuple[str, str]) -> None:
        outcome = run_cli("export", finished / "run", "--sparse-weights", *more, "-o", tmp_path / "net")
        assert outcome.exit_code == 2 and "Nothing was written." in outcome.stderr
        assert not (tmp_path / "net").exists()
