"""Whatever is wrong with the input: one clear message, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli, save_blobs, save_pt2, tiny_mlp
from torch import nn


class Wanderer(nn.Module):
    """Its path depends on the data, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x - 1


def wanderer() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 3), Wanderer())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model, data that fits it, and the ways in which both can be wrong."""
    monkeypatch.chdir(tmp_path)
    save_pt2(tiny_mlp(), (torch.zeros(2, 8),), Path("mlp.pt2"))
    save_pt2(nn.LayerNorm(8), (torch.zeros(2, 8),), Path("norm.pt2"))
    torch.save(wanderer().state_dict(), "wanderer.pt")
    torch.save(tiny_mlp(), "pickled.pt")
    Path("noise.pt2").write_bytes(b"no archive")
    Path("noise.npz").write_bytes(b"no archive")
    save_blobs(Path("blobs.npz"))
    save_blobs(Path("labels.npz"), y_train=np.full(120, 3))
    save_blobs(Path("shape.npz"), x_train=np.zeros((120, 5), np.float32))
    save_blobs(Path("nan.npz"), x_test=np.full((60, 8), np.nan, np.float32))
    save_blobs(Path("floating.npz"), y_train=np.zeros(120, np.float32))
    Path("typo.toml").write_text("seed = 1\n[training]\nepoch = 3\n")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    return tmp_path


def finetune(model: str = "mlp.pt2", *more: str, data: str = "blobs.npz", target: str = "params=0.5") -> list[str]:
    return ["finetune", model, "--data", data, "--target", target, "--epochs", "3", *more]


CASES = {
    "a missing model": (finetune("none.pt2"), "Cannot read model 'none.pt2': no such file."),
    "an unreadable model": (
        finetune("noise.pt2"),
        "Cannot read model 'noise.pt2' as an archive of torch.export.save (",
    ),
    "a pickled model": (finetune("pickled.pt"), "Model 'pickled.pt' is a pickled object, and loading it runs code"),
    "weights without a factory": (finetune("wanderer.pt"), "Model 'wanderer.pt' holds weights, not a module. Say what"),
    "missing data": (finetune(data="none.npz"), "Cannot read data 'none.npz': no such file."),
    "unreadable data": (
        finetune(data="noise.npz"),
        "Cannot read data 'noise.npz' as an .npz file (it is no zip archive).",
    ),
    "unknown data": (finetune(data="table.xls"), "Cannot read data 'table.xls': data is 'digits', an .npz file, or"),
    "a wrong shape": (
        finetune(data="shape.npz"),
        "The model was exported for samples of shape (8,), and the data has (5,). Nothing was changed.",
    ),
    "labels out of range": (
        finetune(data="labels.npz"),
        "Label 3 of sample 0 in the train part is out of range: the model has 3 outputs, so labels are 0 to 2.",
    ),
    "a value that is not finite": (
        finetune(data="nan.npz"),
        "Sample 0 of the test part has a value that is not finite in input 0 (60 such samples).",
    ),
    "regression targets for classes": (
        finetune("mlp.pt2", "--loss", "cross-entropy", data="floating.npz"),
        "The targets of the train part are floating-point numbers, no class labels. For regression say --loss mse.",
    ),
    "a target of 0": (finetune(target="macs=0"), "Target 'macs=0' is out of range. A fraction of the dense model lies"),
    "a target of 2": (finetune(target="macs=2"), "Target 'macs=2' is out of range. A fraction of the dense model lies"),
    "a target of 1": (finetune(target="macs=1"), "Target 'macs=1' is out of range. A fraction of the dense model lies"),
    "an unknown unit": (
        finetune(target="latency=0.5"),
        "Target 'latency=0.5': 'latency' is no unit to compress to. Supported are params, macs, bytes.",
    ),
    "a target out of reach": (
        finetune(target="params=0.01"),
        "Target params=0.01: at most 0 parameters cannot be reached",
    ),
    "nothing that can be removed": (finetune("norm.pt2"), "no channel of this model can be removed."),
    "nothing to inspect": (["inspect", "norm.pt2"], "no channel of this model can be removed."),
    "a model that cannot be captured": (
        finetune("wanderer.pt", "--factory", "test_bad_input:wanderer"),
        "torch.export cannot capture Sequential: ",
    ),
    "a module without data to inspect it with": (
        ["inspect", "wanderer.pt", "--factory", "test_bad_input:wanderer"],
        "Model 'wanderer.pt' does not say what its inputs look like.",
    ),
    "a run folder that is not empty": (
        finetune("mlp.pt2", "-o", "full"),
        "'full' exists already. Nothing was written.",
    ),
    "a run folder that is a file": (finetune("mlp.pt2", "-o", "mlp.pt2"), "'mlp.pt2' exists already. Nothing was"),
    "a run folder under a file": (finetune("mlp.pt2", "-o", "mlp.pt2/run"), "Cannot write 'mlp.pt2/run': "),
    "an unknown device": (finetune("mlp.pt2", "--device", "abacus"), "Device 'abacus' cannot be used: "),
    "an unknown loss": (finetune("mlp.pt2", "--loss", "hinge"), "Unknown loss 'hinge': expected one of "),
    "a loss that cannot be imported": (
        finetune("mlp.pt2", "--loss", "nowhere:f"),
        "--loss 'nowhere:f': module 'nowhere' cannot be imported (ModuleNotFoundError",
    ),
    "resuming a model": (finetune("mlp.pt2", "--resume"), "'mlp.pt2' is no run to go on with. Nothing was changed."),
    "resuming what is no run": (
        ["finetune", "--resume", "full"],
        "'full' is no run to go on with. Nothing was changed.",
    ),
    "resuming nothing": (["finetune", "--resume"], "There is no unfinished run under 'runs'. Nothing was changed."),
    "resuming a missing run": (["finetune", "--resume", "-o", "none"], "Cannot read run 'none': no such folder."),
    "no model": (["finetune", "--data", "digits"], "MODEL and --target must be given. Nothing was changed. Say it as"),
    "a rate of 0": (finetune("mlp.pt2", "--lr", "0"), "--lr = 0.0: expected a finite number above 0. Nothing was"),
    "a missing configuration": (["finetune", "--config", "none.toml"], "Cannot read configuration 'none.toml': "),
    "no configuration": (["finetune", "--config", "noise.pt2"], "noise.pt2 is no TOML: "),
    "an unknown setting": (
        ["finetune", "--config", "typo.toml"],
        "typo.toml, line 3: there is no setting [training] epo",
    ),
    "no run to export": (["export"], "There is no finished run under 'runs'."),
    "a missing run to export": (["export", "none"], "Cannot read run 'none': no such folder."),
    "a folder that is no run": (["export", "full"], "'full' is no run: manifest.json is missing."),
    "a missing artifact": (["verify", "none.onnx", "--against", "full"], "'full' is no run: manifest.json is"),
    "a missing artifact to time": (["bench", "none.onnx"], "Cannot read artifact 'none.onnx': no such file."),
    "another kind of artifact": (
        ["bench", "blobs.npz"],
        "Cannot read artifact 'blobs.npz': an artifact is an .onnx or a",
    ),
    "batch sizes that are none": (["bench", "x.onnx", "--batch", "1,x"], "--batch '1,x' is no list of batch sizes."),
}


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES.keys())
def test_bad_input(folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(folder.rglob("*"))
    outcome = run_cli(*arguments)
    lines = outcome.stderr.splitlines()
    assert lines[-1].startswith("Error: " + message), outcome.stderr
    assert sum(line.startswith("Error: ") for line in lines) == 1 and "Traceback" not in outcome.stderr, outcome.stderr
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert sorted(folder.rglob("*")) == before
