"""LeNet-300-100 on MNIST: learned gates against one-shot group magnitude, at the same parameters, teacher and epochs.

    python benchmarks/mnist.py [--seeds 3] [--epochs N] [--dense adamw|sgd] [--granularity structured|weights]

For every seed a network is trained dense without augmentation, then compressed to each budget by every method with the
package's default settings. All parameters count, the first layer's too: a pixel that nobody reads leaves it. With
``--granularity weights`` single weights become zero and the budget counts what is not: 2 % of all parameters, beside
magnitude across all layers and within each, 96 epochs for every method instead of 48. Choices are made on 5,000
validation images; the test part is read once a model, for the number printed, after the last epoch.
MNIST is read from ``$L0COMPRESS_DATA/mnist/mnist.npz``, by default under ``../shared/data``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l0compress.data import Data, Split
from l0compress.errors import TargetMissedError
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Plan:
    """What is compared: the error that is wanted at each budget, at most, and the methods.

    ``above_dense`` says that the bounds are points above the dense models' own mean error.
    """

    bounds: dict[int, float]
    methods: dict[str, str]
    above_dense: bool = False
    epochs: int = FinetuneSettings().epochs


PLANS: dict[str, Plan] = {
    "structured": Plan({26_500: 1.45, 13_900: 1.80}, {"L0": "l0", "magnitude": "magnitude"}),
    "weights": Plan(
        {5_332: 0.3},
        {
            "L0": "l0",
            "magnitude, global": "magnitude",
            "magnitude, by layer": "layer-magnitude",
        },
        above_dense=True,
        epochs=96,
    ),
}
NUM_VALIDATION = 5_000
DENSE_EPOCHS = {"adamw": 40, "sgd": 30}


@dataclass(frozen=True)
class Row:
    """One compressed model: its size and its error on the test part, in percent, after the last epoch."""

    budget: int
    method: str
    seed: int
    params: int
    error: float


class LeNet(nn.Module):
    """784 pixels, 300 and 100 hidden units, 10 classes: 266,610 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(784, 300)
        self.second = nn.Linear(300, 100)
        self.third = nn.Linear(100, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 784) pixels in [0, 1] to (n, 10) logits."""
        return self.third(F.relu(self.second(F.relu(self.first(pixels)))))


def load_mnist() -> Data:
    """MNIST as flat pixels in [0, 1]; the last training images by a fixed permutation are the validation part."""
    folder = Path(os.environ.get("L0COMPRESS_DATA", REPOSITORY.parent / "shared" / "data"))
    path = folder / "mnist" / "mnist.npz"
    if not path.exists():
        sys.exit(f"{path} does not exist: set L0COMPRESS_DATA to the folder that holds mnist/mnist.npz")
    with np.load(path) as arrays:
        parts = {name: (_pixels(arrays[f"x_{name}"]), _labels(arrays[f"y_{name}"])) for name in ("train", "test")}
    inputs, targets = parts["train"]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, val = order[:-NUM_VALIDATION], order[-NUM_VALIDATION:]
    test_inputs, test_targets = parts["test"]
    return Data(
        train=Split((inputs[train],), targets[train]),
        val=Split((inputs[val],), targets[val]),
        test=Split((test_inputs,), test_targets),
    )


def _pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).flatten(1).float() / 255


def _labels(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels).long()


def train_dense(data: Data, seed: int, recipe: str) -> LeNet:
    """AdamW or SGD with a cosine and input dropout 0.2; no augmentation."""
    torch.manual_seed(seed)
    network = LeNet()
    if recipe == "sgd":
        options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
        optimizer = torch.optim.SGD(network.parameters(), **options)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    steps = DENSE_EPOCHS[recipe] * (len(data.train) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(DENSE_EPOCHS[recipe]):
        for batch in data.train.batches(128, seed=seed * 1000 + epoch, drop_last=True):
            loss = F.cross_entropy(network(F.dropout(batch.args[0], 0.2)), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def error_percent(network: nn.Module, split: Split) -> float:
    """The share of wrong classes, in percent."""
    with torch.no_grad():
        predicted = network(*split.inputs).argmax(-1)
    return 100 * float((predicted != split.targets).float().mean())


def run_one(graph: CapturedGraph, data: Data, budget: int, method: str, settings: FinetuneSettings) -> Row:
    """Compress by one method; the test part is read here, once."""
    started = time.perf_counter()
    settings = replace(settings, method=PLANS[settings.granularity].methods[method])
    result = finetune(graph, data, {"params": budget}, settings=settings)
    counted = cost if settings.granularity == "structured" else nonzero_cost
    params = counted(result.last).params
    if not 0.97 * budget < params <= budget:
        raise TargetMissedError(f"{method}, seed {settings.seed}: {params:,} parameters for a budget of {budget:,}")
    row = Row(budget, method, settings.seed, params, error_percent(result.last.module(), data.test))
    seconds = time.perf_counter() - started
    print(
        f"seed {row.seed}  {budget:>6,}  {method:<19} {params:>6,} parameters  validation "
        f"{100 * (1 - result.last_evaluation.metric):.2f} %  test {row.error:.2f} %  {seconds:.0f} s",
        flush=True,
    )
    return row


def table(rows: list[Row], dense_errors: list[float], plan: Plan) -> str:
    """Mean and spread of the test error by budget and method, as Markdown."""
    lines = [
        f"Dense: 266,610 parameters, test error {_spread(dense_errors)} %",
        "",
        "| budget | method | parameters | test error, mean (min-max), % |",
        "|---|---|---|---|",
    ]
    for budget in plan.bounds:
        for method in plan.methods:
            chosen = [row for row in rows if (row.budget, row.method) == (budget, method)]
            sizes = ", ".join(f"{row.params:,}" for row in chosen)
            lines.append(f"| {budget:,} | {method} | {sizes} | {_spread([row.error for row in chosen])} |")
    return "\n".join(lines)


def _spread(errors: list[float]) -> str:
    return f"{mean(errors):.2f} ({min(errors):.2f}-{max(errors):.2f})"


def main() -> int:
    """Print the table; 0 where the gates' mean error is within the bound of every budget and below magnitude's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default 48, and 96 with --granularity weights")
    parser.add_argument("--dense", choices=list(DENSE_EPOCHS), default="adamw", help="how the dense model is trained")
    parser.add_argument("--granularity", choices=list(PLANS), default="structured", help="what may go")
    arguments = parser.parse_args()
    data, plan = load_mnist(), PLANS[arguments.granularity]
    epochs = arguments.epochs or plan.epochs
    rows: list[Row] = []
    dense_errors: list[float] = []
    for seed in range(arguments.seeds):
        network = train_dense(data, seed, arguments.dense)
        dense_errors.append(error_percent(network, data.test))
        print(f"seed {seed}  dense  test {dense_errors[-1]:.2f} %", flush=True)
        graph = capture(network, (data.train.inputs[0][:2],))
        settings = FinetuneSettings(epochs=epochs, seed=seed, granularity=arguments.granularity)
        rows += [run_one(graph, data, budget, method, settings) for budget in plan.bounds for method in plan.methods]
    print(f"\n{table(rows, dense_errors, plan)}")
    return 0 if all(_passes(rows, budget, dense_errors, plan) for budget in plan.bounds) else 1


def _passes(rows: list[Row], budget: int, dense_errors: list[float], plan: Plan) -> bool:
    bound = plan.bounds[budget] + (mean(dense_errors) if plan.above_dense else 0.0)
    gates, *others = (
        mean(row.error for row in rows if (row.budget, row.method) == (budget, method)) for method in plan.methods
    )
    passed = gates <= bound and gates < min(others)
    print(f"{budget:,}: L0 {gates:.2f} %, wanted at most {bound:.2f} %: {'ok' if passed else 'MISSED'}")
    return passed


if __name__ == "__main__":
    sys.exit(main())
