"""A run that is held to a time: from the command line to a file of the result, and across a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import run_cli, save_blobs, save_pt2
from run_folders import Killed, dying_at, request
from torch import nn

from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.training_run import finetune_run, resume_run

pytestmark = pytest.mark.slow


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model so wide that its weights take time to read, and data for it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 3))
    save_pt2(net, (torch.zeros(2, 8),), Path("mlp.pt2"))
    save_blobs(Path("blobs.npz"))
    return tmp_path


@pytest.mark.usefixtures("wide")
def test_the_command_line_takes_a_time_beside_another_budget() -> None:
    targets = ("--target", "latency=0.6", "--target", "params=0.7", "--latency-threads", "1")
    result = run_cli("finetune", "mlp.pt2", "--data", "blobs.npz", *targets, "--epochs", "0", "-o", "run", "--json")
    assert result.exit_code == 0, result.stderr
    time, params = json.loads(result.stdout)["target"]
    assert (time["unit"], params["unit"]) == ("latency", "params")
    assert time["reached"] <= 1.1 * time["limit"]
    assert params["reached"] <= params["limit"]


@pytest.mark.usefixtures("wide")
def test_a_resumed_run_goes_on_with_what_was_measured_when_it_began() -> None:
    with pytest.raises(Killed):
        finetune_run(request("run", target="latency=0.7", latency_threads=1), on_event=dying_at(1))
    before = read_manifest(Path("run")).about["latency"]
    resumed = resume_run(Path("run"))
    assert read_manifest(Path("run")).about["latency"] == before
    assert resumed.result["target"]["limit"] == int(0.7 * before["dense_ns"])
    assert "ms" in " ".join(resumed.table().notes)
