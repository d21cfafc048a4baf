"""Models and data that are small enough to read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from clouds import blobs, trained_mlp
from kept_registries import keep_registries_
from run_folders import Killed, dying_at, hashes, request
from torch import nn
from typer.testing import CliRunner, Result

from l0compress.cli.app import app
from l0compress.data import Data
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.pipeline.durable import sha256_of
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.training_run import finetune_run

# One thread here and in the commands that tests start: two networks of a few units each would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Times of this machine are kept for its user, not by tests.
os.environ["L0COMPRESS_CACHE"] = tempfile.mkdtemp(prefix="l0compress-cache-")


# PyTorch keeps a simulated device for good once it has one: test_devices.py gives it a process of its own.
collect_ignore = (
    [] if "L0COMPRESS_SIMULATED_DEVICE" in os.environ else ["simulated_device.py", "on_simulated_device.py"]
)


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is mostly slow, the first case is not."""
    seen = set()
    for item in items:
        if item.get_closest_marker("mostly_slow") is not None:
            name = item.nodeid.partition("[")[0]
            if name in seen:
                item.add_marker("slow")
            seen.add(name)


def pytest_runtest_setup() -> None:
    keep_registries_()


def run_cli(*arguments: str | Path) -> Result:
    """The command line in this process: exit code, standard output, standard error."""
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome


def printed_json(*arguments: str | Path) -> dict:
    outcome = run_cli(*arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    return json.loads(outcome.stdout)


def tiny_mlp() -> nn.Module:
    """8 inputs, 6 hidden units, 3 classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def mlp() -> nn.Module:
    return tiny_mlp()


@pytest.fixture(scope="session")
def mlp_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("mlp") / "mlp.pt2"
    save_pt2(tiny_mlp(), (torch.zeros(2, 8),), path)
    return path.read_bytes()


@pytest.fixture
def mlp_pt2(mlp_bytes: bytes, tmp_path: Path) -> Path:
    """The tiny MLP as an archive of ``torch.export.save``, with a free batch."""
    path = tmp_path / "mlp.pt2"
    path.write_bytes(mlp_bytes)
    return path


@pytest.fixture
def blobs_npz(tmp_path: Path) -> Path:
    """Three well separated clouds in eight dimensions, 120 samples for training and 60 for test."""
    path = tmp_path / "blobs.npz"
    save_blobs(path)
    return path


@pytest.fixture(scope="session")
def data() -> Data:
    """Three clouds, drawn anew for each part."""
    return Data(blobs(), blobs(seed=1), blobs(seed=2))


@pytest.fixture(scope="session")
def graph(data: Data) -> CapturedGraph:
    """A network that knows the clouds."""
    return capture(trained_mlp(data.train), (data.train.inputs[0][:2],))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its data, and a run at half its parameters that was exported to both formats."""
    folder = tmp_path_factory.mktemp("finished")
    save_pt2(tiny_mlp(), (torch.zeros(2, 8),), folder / "mlp.pt2")
    save_blobs(folder / "blobs.npz")
    arguments = ("--data", folder / "blobs.npz", "--target", "params=0.6", "--epochs", "3", "-o", folder / "run")
    assert run_cli("finetune", folder / "mlp.pt2", *arguments).exit_code == 0
    for format in ("onnx", "pt2"):
        assert run_cli("export", folder / "run", "--format", format).exit_code == 0
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, a run that nobody touched, and one that was killed after its second epoch."""
    folder, before = tmp_path_factory.mktemp("made"), Path.cwd()
    os.chdir(folder)
    save_pt2(tiny_mlp(), (torch.zeros(2, 8),), Path("mlp.pt2"))
    save_blobs(Path("blobs.npz"))
    finetune_run(request("whole"))
    with pytest.raises(Killed):
        finetune_run(request("run"), on_event=dying_at(2))
    os.chdir(before)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a model and data; the threads that runs in it set are restored."""
    monkeypatch.chdir(tmp_path)
    for name in ("mlp.pt2", "blobs.npz"):
        shutil.copy(made / name, name)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def whole(made: Path, folder: Path) -> dict[str, str]:
    """The hashes of a run that nobody touched."""
    shutil.copytree(made / "whole", folder / "whole")
    return hashes("whole")


@pytest.fixture
def unfinished(made: Path, folder: Path) -> Path:
    """A run that was killed after its second epoch."""
    return Path(shutil.copytree(made / "run", folder / "run"))


def sign_again_(run: Path) -> None:
    """Make a run folder whose files were changed consistent again."""
    manifest = read_manifest(run)
    manifest.files.update({name: sha256_of(run / name) for name in manifest.files})
    manifest.write(run)


def without_data(run: Path, copy: Path) -> Path:
    """A copy of a run on the clouds, whose data have gone since."""
    shutil.copytree(run, copy)
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(config.replace("blobs.npz", "gone.npz"))
    sign_again_(copy)
    return copy


def save_pt2(model: nn.Module, args: tuple[torch.Tensor, ...], path: Path) -> None:
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in args)
    torch.export.save(torch.export.export(model.eval(), args, dynamic_shapes=free, strict=False), path)


def save_blobs(path: Path, **changes: np.ndarray) -> None:
    """Write the clouds, with some arrays replaced."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 8)) * 3
    labels = {"train": np.arange(120) % 3, "test": np.arange(60) % 3}
    arrays = {f"y_{part}": values for part, values in labels.items()}
    for part, values in labels.items():
        arrays[f"x_{part}"] = (centres[values] + random.normal(size=(len(values), 8))).astype(np.float32)
    np.savez(path, **{**arrays, **changes})
