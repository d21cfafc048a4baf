"""Bundles on the command line: export, verify and bench, as their users meet them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import printed_json, run_cli, tiny_mlp
from torch import nn

import l0compress as l0
from l0compress import BundleSettings, capture, export_bundle
from l0compress_runtime import load


def sparse_mlp() -> nn.Module:
    """8 inputs, 64 hidden units, 3 classes; nine of ten weights of the first layer and of the last are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= torch.rand(parameter.shape) < 0.1
    return model.eval()


@pytest.fixture(scope="module")
def finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was exported as a bundle too, and whose weights were not sparse."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("bundle") / "finished"))
    outcome = run_cli("export", folder / "run", "--format", "bundle", "--batch", "1,4", "--threads", "1")
    assert outcome.exit_code == 0, outcome.stderr
    assert "equal to the masked dense model" in outcome.stdout
    return folder


@pytest.mark.slow
def test_a_run_is_exported_under_the_suffix_of_a_bundle(finished):
    assert (finished / "run" / "model.l0c").is_file()


def test_the_old_name_of_the_format_makes_a_bundle_and_is_in_no_help_text(finished, tmp_path):
    outcome = run_cli("export", finished / "run", "--format", "csr", "--batch", "1", "-o", tmp_path / "old.l0c")
    assert outcome.exit_code == 0 and load(tmp_path / "old.l0c").inputs
    assert "csr" not in run_cli("export", "--help").stdout


def test_no_other_format_is_taken(finished):
    outcome = run_cli("export", finished / "run", "--format", "zip")
    assert outcome.exit_code == 2
    assert "'zip' is not one of 'onnx', 'bundle', 'pt2', 'huggingface'." in " ".join(
        outcome.stderr.replace("│", " ").split()
    )


def test_verify_runs_the_bundle_beside_the_masked_model(finished):
    found = printed_json("verify", finished / "run/model.l0c", "--against", finished / "run")
    assert found["equal"] and found["max_relative"] < 1e-5


def test_verify_refuses_the_bundle_of_another_model(finished, tmp_path):
    other = export_bundle(capture(tiny_mlp(), (torch.randn(2, 8),)), tmp_path / "other.l0c")
    outcome = run_cli("verify", other.path, "--against", finished / "run")
    assert outcome.exit_code == 1 and "not equal" in outcome.stderr


@pytest.mark.slow
def test_bench_times_it_beside_the_dense_model_as_onnx(finished):
    arguments = ("--against", finished / "run", "--batch", "1,3", "--threads", "1")
    found = printed_json("bench", finished / "run/model.l0c", *arguments)
    assert {(row["name"], row["batch_size"]) for row in found["bench"]["timings"]} >= {
        (name, size) for name in ("dense", "dense int8", "small bundle") for size in (1, 3)
    }


@pytest.mark.slow
def test_bench_shows_what_was_measured_at_export(tmp_path):
    settings = BundleSettings(threads=1, engines=("scipy",))
    graph = capture(sparse_mlp(), (torch.randn(2, 8),))
    exported = export_bundle(graph, tmp_path / "model.l0c", batch_sizes=(2,), settings=settings)
    outcome = run_cli("bench", exported.path, "--batch", "2", "--threads", "1")
    assert outcome.exit_code == 0, outcome.stderr
    assert "Sparse layers, as timed at export" in outcome.stdout
    assert "batch 2" in outcome.stdout and "scipy 0." in outcome.stdout


@pytest.mark.mostly_slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_storages_are_verified_by_what_they_can_hold(finished, tmp_path, dtype):
    path = tmp_path / "model.l0c"
    found = printed_json("export", finished / "run", "--format", "bundle", "--dtype", dtype, "-o", path)
    assert found["path"] == str(path) and found["equality"]["outputs"][0]["tolerance"] >= (
        1e-5 if dtype == "int8" else 1e-3
    )
    assert printed_json("verify", path, "--against", finished / "run")["equal"]


def test_load_returns_what_is_called_like_the_model(tmp_path):
    model = sparse_mlp()
    export_bundle(capture(model, (torch.randn(2, 8),)), tmp_path / "model.l0c", settings=BundleSettings(measure=False))
    x = torch.randn(5, 8)
    loaded = l0.load(tmp_path / "model.l0c", threads=1)
    np.testing.assert_allclose(loaded(x)["output_0"].numpy(), model(x).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(loaded(input=x)["output_0"].numpy(), model(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engines", "blas"), "there is no engine 'blas'"),
        (("--batch", "1,x"), "--batch '1,x' is not a list of batch sizes"),
        (("-o", "missing/model.l0c"), "cannot write"),
    ],
)
def test_bad_input(finished, arguments, message):
    outcome = run_cli("export", finished / "run", "--format", "bundle", *arguments)
    assert outcome.exit_code == 2 and message in outcome.stderr


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_damaged_bundle(finished, tmp_path, command):
    data = bytearray((finished / "run/model.l0c").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "damaged.l0c").write_bytes(data)
    outcome = run_cli(command, tmp_path / "damaged.l0c", "--against", finished / "run")
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("Error: Cannot read bundle") and "None of it was run" in outcome.stderr
