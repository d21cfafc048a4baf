"""What it gains to train with fake quantization: the same run with and without, in float and as its int8 file.

    python benchmarks/quantization_aware.py [--network convolutions|depthwise|regression|mnist]
                                            [--target int8-bytes=0.15] [--epochs 6] [--method fisher] [--seeds 3]

A network is trained, then compressed twice to the target with the same seed and epochs, once with
``quantization_aware``. Both small models are exported and quantized by ONNX Runtime as ``export --quantize int8`` does
it: calibrated on 256 training samples where there are convolutions, dynamic elsewhere. The test part is read once a
file, after the last epoch. Digits come with scikit-learn; the regression is Friedman's first (1991), without noise,
whose error is the root of the mean square as a share of the values' deviation; MNIST (LeNet-300-100) is read from
``$L0COMPRESS_DATA/mnist/mnist.npz``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from mnist import REPOSITORY, load_mnist, train_dense
from torch import nn
from torch.nn import functional as F

from l0compress.data import Data, Split
from l0compress.export.onnx import export_onnx
from l0compress.export.quantize import Int8
from l0compress.export.session import OnnxSession
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.groups.cost import cost
from l0compress.pipeline.quantizing import quantized_file
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings

sys.path.insert(0, str(REPOSITORY / "examples"))
from digits_train import digits, train


@dataclass(frozen=True)
class Row:
    """One file of one run: its error in percent and its loss on the test part."""

    aware: bool
    form: str
    error: float
    loss: float
    size: int


def convolutions() -> nn.Module:
    """16 and 32 channels on 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def depthwise() -> nn.Module:
    """Blocks of a convolution by channel and one of a single pixel, whose activations int8 bears worst."""

    def block(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
            nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
        )  # fmt: skip

    stem = (nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
    return nn.Sequential(
        *stem, *(block(24) for _ in range(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)
    )


def on_digits(make: Callable[[], nn.Module], seed: int) -> tuple[CapturedGraph, Data]:
    torch.manual_seed(seed)
    network, parts = make(), digits()
    train(network, *parts["train"])
    data = Data(**{name: Split((images,), labels) for name, (images, labels) in parts.items()})
    return capture(network.eval(), (parts["train"][0][:2],)), data


def on_mnist(seed: int) -> tuple[CapturedGraph, Data]:
    data = load_mnist()
    return capture(train_dense(data, seed, "sgd"), (data.train.inputs[0][:2],)), data


def on_friedman(seed: int) -> tuple[CapturedGraph, Data]:
    """Two hidden layers of 64 on ten numbers, of which five matter."""
    torch.manual_seed(seed)
    x = torch.rand(6000, 10)
    waves = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1])
    y = (waves + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4] - 14.4)[:, None] / 4.9
    network = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(20):
        for index in torch.randperm(4000).split(100):
            optimizer.zero_grad()
            F.mse_loss(network(x[index]), y[index]).backward()
            optimizer.step()
    parts = {"train": slice(0, 4000), "val": slice(4000, 5000), "test": slice(5000, 6000)}
    data = Data(**{name: Split((x[part],), y[part]) for name, part in parts.items()})
    return capture(network.eval(), (x[:2],)), data


NETWORKS: dict[str, Callable[[int], tuple[CapturedGraph, Data]]] = {
    "convolutions": lambda seed: on_digits(convolutions, seed),
    "depthwise": lambda seed: on_digits(depthwise, seed),
    "regression": on_friedman,
    "mnist": on_mnist,
}


def measured(path: Path, split: Split) -> tuple[float, float]:
    """Error in percent and mean loss: of wrong classes and cross-entropy, or of values."""
    (outputs,) = OnnxSession(path)(*split.inputs).values()
    if split.targets.is_floating_point():
        loss = float(F.mse_loss(outputs, split.targets))
        return 100 * loss**0.5 / float(split.targets.std()), loss
    wrong = int((outputs.argmax(-1) != split.targets).sum())
    return 100 * wrong / len(split), float(F.cross_entropy(outputs, split.targets))


def rows_of(graph: CapturedGraph, data: Data, target: str, settings: FinetuneSettings) -> list[Row]:
    small = finetune(graph, data, target, settings=settings).last
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        # One value near zero has no size of its own to be compared with.
        export_onnx(small, exact, tolerance=1e-3)
        quantized_file(exact, rounded, data.train, Int8())
        return [
            Row(settings.quantization_aware, form, *measured(path, data.test), path.stat().st_size)
            for form, path in (("float", exact), ("int8", rounded))
        ]


def main() -> int:
    """Print every run and the means; 0 where rounding adds no more to the loss with the flag than without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="convolutions")
    parser.add_argument("--target", default="int8-bytes=0.15")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--method", default="fisher")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows: list[Row] = []
    print(f"{options.network}, {options.target}, {options.epochs} epochs, method {options.method}")
    print(f"{'seed':>4} {'aware':>6} {'form':>6} {'error %':>8} {'loss':>8} {'bytes':>9}")
    for seed in range(options.seeds):
        graph, data = NETWORKS[options.network](seed)
        plain = FinetuneSettings(epochs=options.epochs, method=options.method, seed=seed)
        for settings in (plain, replace(plain, quantization_aware=True)):
            found = rows_of(graph, data, options.target, settings)
            rows += found
            for row in found:
                shown = "yes" if row.aware else "no"
                print(f"{seed:>4} {shown:>6} {row.form:>6} {row.error:8.2f} {row.loss:8.5f} {row.size:9,}", flush=True)
    print(f"dense: {cost(graph).int8_bytes:,} bytes of int8")
    return _summed_up(rows)


def _summed_up(rows: list[Row]) -> int:
    lost: dict[bool, float] = {}
    for aware in (False, True):
        exact, rounded = (
            [row for row in rows if row.aware is aware and row.form == form] for form in ("float", "int8")
        )
        lost[aware] = mean(after.loss - before.loss for before, after in zip(exact, rounded, strict=True))
        spread = stdev(row.error for row in rounded) if len(rounded) > 1 else 0.0
        print(
            f"{'with' if aware else 'without'}: error {mean(row.error for row in exact):.2f} % in float, "
            f"{mean(row.error for row in rounded):.2f} ± {spread:.2f} % in int8; int8 adds {lost[aware]:+.5f} of loss"
        )
    return int(lost[True] > lost[False])


if __name__ == "__main__":
    sys.exit(main())
