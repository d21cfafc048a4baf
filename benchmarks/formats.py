"""Models as people have them, each through inspect, finetune, export and verify by the command line alone.

    python benchmarks/formats.py [--only NAME ...]

- ``resnet20``: the pretrained ResNet-20 from its ``.th`` checkpoint, on a folder of JPEG images;
- ``minilm``: all-MiniLM-L6-v2 from its Hugging Face folder, on SST-2 sentences without labels;
- ``stories260k``: a Llama in a format of its own, through the factory in ``examples/``;
- ``sklearn``: scikit-learn's MLP as an ONNX file of skl2onnx, on the digits.

Runs are short: what is shown is that each goes through, and that what comes out equals the masked dense model. Data and
weights are read from ``$L0COMPRESS_DATA``, by default ``../shared/data``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pretrained import INSTALL, minilm_folder

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("L0COMPRESS_DATA", REPOSITORY.parent / "shared" / "data"))
NUM_IMAGES, NUM_SENTENCES = 1_500, 400


@dataclass(frozen=True)
class Subject:
    """A model with what the commands need to be told: flags for both, flags of ``finetune``, and variables."""

    model: str
    flags: list[str]
    training: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def resnet20(folder: Path) -> Subject:
    """The checkpoint as it was published: its names start with ``module.``."""
    source = FOLDER / "cifar10_jpeg" / "cifar10_jpeg.npz"
    with np.load(source) as arrays:
        # The images lie there class by class.
        chosen = np.linspace(0, len(arrays["y_train"]) - 1, NUM_IMAGES).astype(int)
        lengths, labels, content = arrays["train_len"], arrays["y_train"][chosen], arrays["train_bytes"]
        ends, lengths = np.cumsum(lengths)[chosen], lengths[chosen]
    for position, (end, length, label) in enumerate(zip(ends, lengths, labels, strict=True)):
        part = "val" if position % 5 == 0 else "train"
        path = folder / "images" / part / str(label) / f"{position}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[end - length : end].tobytes())
    weights = FOLDER / "resnet_cifar10" / "resnet20-12fca82f.th"
    data = ["--data", str(folder / "images"), "--normalize", "imagenet"]
    return Subject(str(weights), ["--factory", "resnet20:model", *data], ["--target", "macs=0.5", "--epochs", "4"])


def minilm(folder: Path) -> Subject:
    """The folder as it comes, its tokenizer included; it has no head, so the dense model is the only teacher."""
    model = minilm_folder()
    if model is None:
        raise FileNotFoundError(f"{INSTALL} brings the model")
    for part in ("train", "dev"):
        lines = (FOLDER / "sst2" / f"stsa.binary.{part}").read_bytes().splitlines(keepends=True)
        (folder / f"sst2.{part}").write_bytes(
            b"".join(lines[: NUM_SENTENCES if part == "train" else NUM_SENTENCES // 4])
        )
    data = ["--data", str(folder), "--no-labels", "--max-length", "24"]
    training = ["--target", "params=0.75", "--epochs", "2", "--batch-size", "16", "--lr", "5e-5"]
    return Subject(str(model), data, training)


def stories260k(folder: Path) -> Subject:
    """Weights of one's own format, converted once, and the architecture as a function."""
    weights = folder / "stories260k.safetensors"
    source = FOLDER / "stories260k" / "checkpoint_legacy.bin"
    subprocess.run([sys.executable, REPOSITORY / "examples" / "stories260k.py", source, weights], check=True)
    flags = ["--factory", "stories260k:build", "--factory-args", '{"layers": 5}', "--data", "stories260k:stories"]
    return Subject(
        str(weights), flags, ["--target", "params=0.8", "--epochs", "4"], {"L0COMPRESS_STORIES": str(weights)}
    )


def sklearn(folder: Path) -> Subject:
    """A model that PyTorch has never seen: label and probabilities come out, and the probabilities are trained."""
    import skl2onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    pixels, labels = load_digits(return_X_y=True)
    inputs = (pixels / 16).astype(np.float32)
    model = MLPClassifier((64, 64), max_iter=60, random_state=0, tol=0.0).fit(inputs, labels)
    content = skl2onnx.to_onnx(model, inputs[:1], options={"zipmap": False}).SerializeToString()
    (folder / "mlp.onnx").write_bytes(content)
    return Subject(str(folder / "mlp.onnx"), ["--data", "digits"], ["--target", "params=0.5", "--epochs", "12"])


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "resnet20": resnet20,
    "minilm": minilm,
    "stories260k": stories260k,
    "sklearn": sklearn,
}


def prove(name: str, folder: Path) -> dict[str, Any]:
    """Take one model through the commands; the numbers that they gave.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    subject = SUBJECTS[name](folder)
    run, artifact = folder / "run", folder / "small.onnx"
    started = time.monotonic()
    inspected = _l0(subject, "inspect", subject.model, *subject.flags)
    finished = _l0(subject, "finetune", subject.model, *subject.flags, *subject.training, "-o", str(run))
    _l0(subject, "export", str(run), "--format", "onnx", "-o", str(artifact))
    verified = _l0(subject, "verify", str(artifact), "--against", str(run))
    scores = finished["test"] or finished["val"]
    return {
        "groups": len(inspected["groups"]),
        "params": (finished["dense"]["params"], finished["small"]["params"]),
        "macs": (finished["dense"]["macs"], finished["small"]["macs"]),
        "metric_name": scores["dense"]["metric_name"],
        "metric": (scores["dense"]["metric"], scores["small"]["metric"]),
        "max_relative": verified["max_relative"],
        "seconds": time.monotonic() - started,
    }


def _l0(subject: Subject, *arguments: str) -> dict[str, Any]:
    path = os.pathsep.join(str(REPOSITORY / part) for part in (".", "benchmarks", "examples"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "l0compress", *arguments, "--json"],
        env={**os.environ, **subject.environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    for name in parser.parse_args().only:
        with tempfile.TemporaryDirectory() as folder:
            found = prove(name, Path(folder))
        dense, small = found["params"]
        print(
            f"{name}: {found['groups']} groups; parameters {dense:,} -> {small:,}, MACs {found['macs'][0]:,} -> "
            f"{found['macs'][1]:,}; {found['metric_name']} {found['metric'][0]:.4f} -> {found['metric'][1]:.4f}; ONNX "
            f"equals masked dense within {found['max_relative']:.1e} ({found['seconds']:.0f} s)"
        )


if __name__ == "__main__":
    main()
