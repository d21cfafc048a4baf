"""A family from one run against as many single runs with the same settings: scores, and what each costs.

    python benchmarks/family.py [--network digits|mnist|resnet20] [--target macs=0.8,0.6,0.4,0.25] [--epochs 48]
                                [--seeds 2] [--method l0]

Digits come with the package, and the network is the one of ``make demo``, trained first. LeNet-300-100 on MNIST is the
network of ``benchmarks/mnist.py``, trained by SGD, and ResNet-20 the pretrained one of ``benchmarks/resnet20.py``.
Their data are read from ``$L0COMPRESS_DATA``. The test part is read once a model.
Costs are epochs and seconds of CPU time, which do not depend on what else the machine does; capture, decisions,
training and verification are in them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import mnist
import resnet20
import torch
from torch import nn

import l0compress as l0
from l0compress.data import Data, Split
from l0compress.measure.table import Table
from l0compress.pipeline.compress_result import CompressResult
from l0compress.training.family_targets import family_of, legs_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import digits_train


@dataclass(frozen=True)
class Cell:
    """One small model: its scores in percent, and what it took."""

    target: str
    kind: str
    val: float
    test: float
    epochs: int
    seconds: float


def digits() -> tuple[nn.Module, Data]:
    """The demo's network, trained, and its data."""
    torch.manual_seed(0)
    parts, network = digits_train.digits(), digits_train.model()
    digits_train.train(network, *parts["train"])
    return network, Data(**{name: Split((images,), labels) for name, (images, labels) in parts.items()})


def lenet() -> tuple[nn.Module, Data]:
    """LeNet-300-100, trained by SGD, and MNIST."""
    data = mnist.load_mnist()
    return mnist.train_dense(data, 0, "sgd"), data


NETWORKS = {"digits": digits, "mnist": lenet, "resnet20": lambda: (resnet20.pretrained(), resnet20.data())}


def cells(network: nn.Module, data: Data, targets: str, settings: l0.FinetuneSettings) -> Iterator[Cell]:
    """The single runs of one seed, then its family."""
    for target in family_of(targets):
        began = time.process_time()
        result = l0.compress(network, data, target=target, settings=settings)
        yield _cell("single", result, settings.epochs, time.process_time() - began)
    began = time.process_time()
    family = l0.compress_family(network, data, target=targets, settings=settings)
    seconds = time.process_time() - began
    epochs = [leg.settings.epochs for leg in legs_of(family.members[0].dense, family_of(targets), settings)]
    for result, count in zip(family.members, epochs, strict=True):
        yield _cell("family", result, count, seconds / len(epochs))


def _cell(kind: str, result: CompressResult, epochs: int, seconds: float) -> Cell:
    val, test = result.val.small.metric, result.test.small.metric if result.test is not None else float("nan")
    return Cell(str(result.target), kind, 100 * val, 100 * test, epochs, seconds)


def table(found: list[Cell], seeds: int, title: str) -> Table:
    """Means over seeds, each with its values."""

    def of(target: str, kind: str) -> list[Cell]:
        return [cell for cell in found if (cell.target, cell.kind) == (target, kind)]

    def numbers(values: list[float]) -> str:
        return f"{mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"

    rows = []
    for target in dict.fromkeys(cell.target for cell in found):
        single, member = of(target, "single"), of(target, "family")
        parts = [
            numbers([getattr(cell, part) for cell in kind]) for part in ("val", "test") for kind in (single, member)
        ]
        rows.append((target, *parts, f"{single[0].epochs} / {member[0].epochs}"))
    runs, family = (_per_seed(found, kind, seeds) for kind in ("single", "family"))
    one = [total / len(rows) for total in runs]
    notes = (
        f"One run on the average: {one[0]:.0f} epochs, {one[1]:.1f} s of CPU time. The family: {family[0]:.0f} epochs "
        f"({family[0] / one[0]:.2f} runs), {family[1]:.1f} s ({family[1] / one[1]:.2f} runs).",
    )
    columns = ("target", "val, single", "val, family", "test, single", "test, family", "epochs")
    return Table(title, columns, tuple(rows), notes)


def _per_seed(found: list[Cell], kind: str, seeds: int) -> list[float]:
    """Epochs and seconds of a kind, a seed."""
    return [sum(getattr(cell, name) for cell in found if cell.kind == kind) / seeds for name in ("epochs", "seconds")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=tuple(NETWORKS), default="digits")
    parser.add_argument("--target", default="macs=0.8,0.6,0.4,0.25")
    parser.add_argument("--epochs", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--method", default="l0")
    arguments = parser.parse_args()
    network, data = NETWORKS[arguments.network]()
    found: list[Cell] = []
    for seed in range(arguments.seeds):
        settings = l0.FinetuneSettings(epochs=arguments.epochs, seed=seed, method=arguments.method)
        for cell in cells(network, data, arguments.target, settings):
            found.append(cell)
            print(f"seed {seed}: {cell}", file=sys.stderr, flush=True)
    title = f"{arguments.network}, {arguments.method}, {arguments.epochs} epochs, {arguments.seeds} seeds"
    print(table(found, arguments.seeds, title).to_markdown())


if __name__ == "__main__":
    main()
