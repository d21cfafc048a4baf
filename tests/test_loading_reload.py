"""A small model comes back without the code that it was made by, trains on, and can be compressed again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_cli, save_blobs, save_pt2
from torch import nn

import l0compress as l0


def own_net() -> nn.Module:
    """A module of the user's, with all that has a training mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A run on weights with a factory, whose code is not needed from here on, and its files."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        make_run()
    return folder


def make_run() -> None:
    save_blobs(Path("blobs.npz"))
    torch.save(own_net().state_dict(), "weights.pt")
    told = ["--factory", "test_loading_reload:own_net", "--data", "blobs.npz", "--target", "params=0.7"]
    outcome = run_cli("finetune", "weights.pt", *told, "--epochs", "3", "-o", "run")
    assert outcome.exit_code == 0, outcome.stderr
    for kind in ("pt2", "onnx"):
        assert run_cli("export", "run", "--format", kind, "-o", f"small.{kind}").exit_code == 0


@pytest.fixture
def run(exported, tmp_path, monkeypatch) -> None:
    """The same in the working directory."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("run")
def test_each_artifact_computes_what_the_run_s_model_computes():
    x = torch.randn(7, 8)
    expected = l0.load("run/masked.pt2")(x)
    torch.testing.assert_close(l0.load("small.pt2")(x), expected, atol=1e-5, rtol=1e-5)
    (found,) = l0.load("small.onnx")(x).values()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("run")
def test_it_needs_neither_factory_nor_pickle():
    """Another process, in which the user's code cannot be imported and unpickling is an error."""
    program = """
import pickle, sys
import torch
import l0compress as l0
class Forbidden:
    def __init__(self, *_, **__): raise SystemExit("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = Forbidden
model = l0.load("small.pt2")
print(tuple(model(torch.zeros(3, 8)).shape), "test_loading_reload" in sys.modules)
"""
    repository = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={"PYTHONPATH": repository, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "(3, 3) False", done.stderr


@pytest.mark.usefixtures("run")
def test_a_reloaded_module_trains():
    model = l0.load("small.pt2")
    assert isinstance(model, nn.Module) and not model.training
    x, y = torch.randn(64, 8) + 2, torch.arange(64) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x)), "dropout is off"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert sum(losses[-5:]) < sum(losses[:5])
    after = model.state_dict()
    still = {name for name, value in before.items() if torch.allclose(after[name], value, atol=1e-6)}
    # A bias before a batch norm has no gradient, counts need not be kept, and which inputs are read stays.
    assert still <= {"0.bias", "1.num_batches_tracked", "linear_inputs"}
    model.eval()
    assert torch.equal(model(x), model(x))


def test_batch_norm_averages_as_in_pytorch(tmp_path):
    model, x = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, momentum=0.3)), torch.randn(32, 8) * 3 + 1
    save_pt2(model, (torch.zeros(2, 8),), tmp_path / "net.pt2")
    loaded = l0.load(tmp_path / "net.pt2")
    torch.testing.assert_close(loaded.train()(x), model.train()(x))
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(loaded.state_dict()[name], model.state_dict()[name])
    torch.testing.assert_close(loaded.eval()(x), model.eval()(x))


@pytest.mark.usefixtures("run")
def test_it_goes_through_finetune_again():
    told = ["--data", "blobs.npz", "--target", "params=0.8", "--epochs", "2", "-o", "again", "--json"]
    outcome = run_cli("finetune", "small.pt2", *told)
    assert outcome.exit_code == 0, outcome.stderr
    first, second = json.loads(Path("run/result.json").read_text()), json.loads(outcome.stdout)
    assert second["dense"] == first["small"]
    assert second["small"]["params"] <= 0.8 * first["small"]["params"]
    assert run_cli("verify", "small.pt2", "--against", "run").exit_code == 0


@pytest.mark.usefixtures("run")
def test_an_exported_onnx_file_is_a_model_again():
    outcome = run_cli("inspect", "small.onnx", "--data", "blobs.npz")
    assert outcome.exit_code == 0, outcome.stderr
