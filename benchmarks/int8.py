"""What int8 costs in accuracy, before and after shrinking: the digits network and LeNet-300-100 on MNIST.

    python benchmarks/int8.py [--seeds 3] [--network digits]

Each network is trained, compressed with default settings (digits to a quarter of its MACs, MNIST to 26,500 parameters)
and exported; both the dense and the small ONNX file are quantized by ONNX Runtime, dynamically and calibrated on 256
training samples. The test part is read once a file. MNIST is read from ``$L0COMPRESS_DATA/mnist/mnist.npz``, by
default under ``../shared/data``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from mnist import REPOSITORY, load_mnist, train_dense

from l0compress.data import Data, Split
from l0compress.export.onnx import export_onnx
from l0compress.export.quantize import quantize_onnx
from l0compress.export.session import OnnxSession
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings
from l0compress.verification.calls import Call

sys.path.insert(0, str(REPOSITORY / "examples"))
from digits_train import digits, model, train

FORMS = ("float", "int8 dynamic", "int8 static")
WANTED_POINTS = 0.3


def digits_case(seed: int) -> tuple[CapturedGraph, Data, dict[str, float]]:
    """The example network, trained, with its data and budget."""
    torch.manual_seed(seed)
    network, parts = model(), digits()
    train(network, *parts["train"])
    data = Data(**{name: Split((images,), labels) for name, (images, labels) in parts.items()})
    return capture(network.eval(), (parts["train"][0][:2],)), data, {"macs": 0.25}


def mnist_case(seed: int) -> tuple[CapturedGraph, Data, dict[str, float]]:
    """LeNet-300-100, trained with SGD, with its data and budget."""
    data = load_mnist()
    network = train_dense(data, seed, "sgd")
    return capture(network, (data.train.inputs[0][:2],)), data, {"params": 26_500}


def errors(graph: CapturedGraph, data: Data, folder: Path) -> dict[str, float]:
    """Test error of every form of a model, in percent."""
    exact = export_onnx(graph, folder / "float.onnx").path
    calls: Iterator[Call] = (Call(batch.args) for batch in islice(data.train.batches(32, seed=0), 8))
    files = {
        "float": exact,
        "int8 dynamic": quantize_onnx(exact, folder / "dynamic.onnx"),
        "int8 static": quantize_onnx(exact, folder / "static.onnx", calibration=calls),
    }
    return {name: _error_percent(OnnxSession(path), data.test) for name, path in files.items()}


def _error_percent(session: OnnxSession, split: Split) -> float:
    wrong = 0
    for batch in split.batches(500):
        (logits,) = session(*batch.args).values()
        wrong += int((logits.argmax(-1) != batch.targets).sum())
    return 100 * wrong / len(split)


CASES = {"digits": digits_case, "MNIST": mnist_case}


def main() -> int:
    """Print a row a model; 0 where the small model's better int8 form is within 0.3 points of its float form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--network", choices=CASES, help="one of the two alone")
    chosen = parser.parse_args()
    seeds = range(chosen.seeds)
    print("| network | model | " + " | ".join(f"{form}, test error in % (min-max)" for form in FORMS) + " |")
    print("|---|---|" + "---|" * len(FORMS), flush=True)
    within = True
    for name, case in CASES.items():
        if chosen.network not in (None, name):
            continue
        rows: dict[str, list[dict[str, float]]] = {"dense": [], "small": []}
        for seed in seeds:
            graph, data, target = case(seed)
            result = finetune(graph, data, target, settings=FinetuneSettings(seed=seed))
            for which, form in (("dense", graph), ("small", result.last)):
                with tempfile.TemporaryDirectory() as folder:
                    rows[which].append(errors(form, data, Path(folder)))
        for which, found in rows.items():
            print(f"| {name} | {which} | " + " | ".join(_spread([row[form] for row in found]) for form in FORMS) + " |")
        sys.stdout.flush()
        means = {form: mean(row[form] for row in rows["small"]) for form in FORMS}
        within &= min(means["int8 dynamic"], means["int8 static"]) - means["float"] <= WANTED_POINTS
    return 0 if within else 1


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
