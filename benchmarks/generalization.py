"""Few samples: the training and the test error of dense networks and of what the package makes of them.

    python benchmarks/generalization.py [--tasks cancer,digits,housing] [--seeds 5] [--output build/generalization]

For every seed a table is divided anew: few rows to train on, as many to validate on at most, the rest to test. A
network of two hidden layers is trained dense to the end; and with weight decay and the best step chosen by validation,
which is the one that is compressed. Each recipe has several strengths, of which validation chooses one by its loss. The
test part is read once for each dense network and for each choice. What is finished in the output folder is not run
again.

Breast cancer, wine and digits come with scikit-learn. The housing table is read from
``$L0COMPRESS_DATA/housing/housing.csv``, by default under ``../shared/data``, and left out where it is absent.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from mnist import REPOSITORY
from quality.housing import TABLE, housing, targets_of
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

from l0compress.data import Data, Split
from l0compress.errors import TargetMissedError
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.groups.cost import cost
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings

WIDTHS = (128, 64)
DECAYS = (0.0, 0.1, 1.0)
DENSE_STEPS, DENSE_BATCH, DENSE_RATE, LOOK_EVERY = 600, 32, 2e-3, 15
EPOCHS = 24
OVERFITTED, DENSE, CHOSEN = "dense, to the end", "dense, chosen", "the recipe that validation chooses"


@dataclass(frozen=True)
class Table:
    """Inputs (rows, columns), targets (rows,) and how many rows there are to train and to validate on."""

    inputs: Tensor
    targets: Tensor
    train: int
    val: int

    @property
    def outputs(self) -> int:
        """Classes, or one number."""
        return 1 if self.targets.is_floating_point() else int(self.targets.max()) + 1

    def parts(self, seed: int) -> Data:
        """A division by the seed; columns, and a target that is a number, are standardised by the training part."""
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(seed))
        train, rest = order[: self.train], order[self.train :]
        inputs = _standardised(self.inputs, train)
        targets = _standardised(self.targets, train) if self.outputs == 1 else self.targets
        split = [Split((inputs[rows],), targets[rows]) for rows in (train, rest[: self.val], rest[self.val :])]
        return Data(*split)


def _standardised(values: Tensor, rows: Tensor) -> Tensor:
    centre, deviation = values[rows].mean(0), values[rows].std(0)
    # What is the same in all rows that are trained on says nothing, and would be endless elsewhere.
    return torch.where(deviation > 0, (values - centre) / deviation, 0.0)


def _of_scikit(load: Callable[..., tuple], train: int, val: int) -> Table:
    inputs, targets = load(return_X_y=True)
    return Table(torch.tensor(inputs).float(), torch.tensor(targets).long(), train, val)


def _housing() -> Table:
    parts = [part for part in housing().parts().values() if isinstance(part, Split)]
    inputs = torch.cat([part.inputs[0] for part in parts])
    return Table(inputs, torch.cat([targets_of(part) for part in parts]).float(), train=200, val=200)


TASKS: dict[str, Callable[[], Table]] = {
    "cancer": lambda: _of_scikit(datasets.load_breast_cancer, 100, 100),
    "digits": lambda: _of_scikit(datasets.load_digits, 200, 200),
    "wine": lambda: _of_scikit(datasets.load_wine, 50, 50),
    "housing": _housing,
}


@dataclass(frozen=True, eq=False)
class Try:
    """One way to compress: a target and the settings beside it, as text."""

    target: str
    settings: dict[str, float]

    def __str__(self) -> str:
        return " ".join([self.target, *(f"{name}={value:g}" for name, value in self.settings.items())])


def _beside(name: str, *strengths: float) -> tuple[Try, ...]:
    return tuple(Try("params=0.25", {name: strength}) for strength in strengths)


RECIPES: dict[str, tuple[Try, ...]] = {
    "l0": (Try("params=0.5", {}), Try("params=0.25", {}), Try("params=0.1", {})),
    "l0, --l2": _beside("l2", 1e-4, 1e-3),
    "l0, --penalty": (Try("penalty=1e-5", {}), Try("penalty=1e-4", {})),
    "l0, --penalty aic or bic": (Try("aic=1", {}), Try("bic=1", {})),
    "l0, --activation-l1": _beside("activation_l1", 1e-3, 1e-2, 1e-1),
    "l0, --dropout": _beside("dropout", 0.1, 0.3),
}


@dataclass(frozen=True)
class Row:
    """One network: what was done, validation loss, errors in percent, and the share of the parameters left."""

    recipe: str
    what: str
    val_loss: float
    train: float
    test: float
    params: float

    @property
    def gap(self) -> float:
        """How much larger the error is on what was not trained on."""
        return self.test - self.train


def network(columns: int, outputs: int) -> nn.Module:
    """Two hidden layers."""
    first, second = WIDTHS
    return nn.Sequential(
        *(nn.Linear(columns, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, outputs))
    )


def loss_of(model: nn.Module, split: Split) -> Tensor:
    """Cross-entropy, or the mean squared error."""
    return _loss(model(split.inputs[0]), split.targets)


def _loss(outputs: Tensor, targets: Tensor | None) -> Tensor:
    if targets is None:
        raise TypeError("every row has a target")
    if targets.is_floating_point():
        return F.mse_loss(outputs.flatten(), targets)
    return F.cross_entropy(outputs, targets)


@torch.no_grad()
def error(model: nn.Module, split: Split) -> float:
    """Wrong answers in percent; of numbers the root of the mean squared error in percent of the target's deviation."""
    outputs, targets = model(split.inputs[0]), split.targets
    if targets is None:
        raise TypeError("every row has a target")
    if targets.is_floating_point():
        return 100 * math.sqrt(float(_loss(outputs, targets)))
    return 100 * float((outputs.argmax(-1) != targets).float().mean())


def train_dense(data: Data, outputs: int, seed: int, decay: float, *, choose: bool) -> nn.Module:
    """A dense network after all steps, or as it was at its best validation loss."""
    torch.manual_seed(seed)
    inputs, targets = data.train.inputs[0], data.train.targets
    model = network(inputs.shape[1], outputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=DENSE_RATE, weight_decay=decay)
    best, state = math.inf, model.state_dict()
    for step in range(DENSE_STEPS):
        rows = torch.randint(len(inputs), (DENSE_BATCH,))
        optimizer.zero_grad()
        _loss(model(inputs[rows]), None if targets is None else targets[rows]).backward()
        optimizer.step()
        if choose and step % LOOK_EVERY == LOOK_EVERY - 1:
            with torch.no_grad():
                now = float(loss_of(model, data.val))
            if now < best:
                best, state = now, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def row_of(recipe: str, what: str, model: nn.Module, data: Data, params: float) -> Row:
    """Measure a network that was chosen: the only place where the test part is read."""
    with torch.no_grad():
        val = float(loss_of(model, data.val))
    return Row(recipe, what, val, error(model, data.train), error(model, data.test), params)


def rows_of(table: Table, seed: int) -> Iterator[Row]:
    """Both dense networks, and of each recipe the strength that does best in validation."""
    data = table.parts(seed)
    yield row_of(OVERFITTED, "", train_dense(data, table.outputs, seed, 0.0, choose=False), data, 1.0)
    dense = {decay: train_dense(data, table.outputs, seed, decay, choose=True) for decay in DECAYS}
    with torch.no_grad():
        decay = min(dense, key=lambda decay: float(loss_of(dense[decay], data.val)))
    yield row_of(DENSE, f"weight decay {decay:g}", dense[decay], data, 1.0)
    graph = capture(dense[decay], (data.train.inputs[0][:2],))
    for recipe, tries in RECIPES.items():
        found = {one: small for one in tries if (small := compressed(graph, data, one, seed)) is not None}
        if not found:
            continue
        models = {one: small.module().eval() for one, small in found.items()}
        with torch.no_grad():
            best = min(models, key=lambda one: float(loss_of(models[one], data.val)))
        params = cost(found[best]).params / cost(graph).params
        yield row_of(recipe, str(best), models[best], data, params)


def compressed(graph: CapturedGraph, data: Data, one: Try, seed: int) -> CapturedGraph | None:
    """The small network, None where the target cannot be met."""
    settings = FinetuneSettings(epochs=EPOCHS, seed=seed, **one.settings)
    try:
        return finetune(graph, data, one.target, settings=settings).small
    except TargetMissedError:
        return None


def cell(name: str, seed: int, folder: Path) -> list[Row]:
    """The rows of one division of one table, from the folder where they are there."""
    path = folder / f"{name}-{seed}.json"
    if path.exists():
        return [Row(**row) for row in json.loads(path.read_text())]
    started = time.perf_counter()
    rows = list(rows_of(TASKS[name](), seed))
    chosen = min(rows[2:], key=lambda row: row.val_loss)
    rows.append(Row(CHOSEN, f"{chosen.recipe}: {chosen.what}", *list(asdict(chosen).values())[2:]))
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    unfinished.replace(path)
    print(f"{name}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return rows


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds; of one seed there is no deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table_of(cells: list[list[Row]]) -> str:
    """Means over the seeds in which a row is there, as Markdown; the difference is that of the same seeds."""
    lines = [
        "| | parameters left | training error, % | test error, % | gap | test error below dense, chosen | better in |",
        "|---|---|---|---|---|---|---|",
    ]
    by_seed = [{row.recipe: row for row in rows} for rows in cells]
    for name in (OVERFITTED, DENSE, *RECIPES, CHOSEN):
        pairs = [(rows[name], rows[DENSE]) for rows in by_seed if name in rows]
        if not pairs:
            continue
        own = [row for row, _ in pairs]
        less = [dense.test - row.test for row, dense in pairs]
        wins = f"{sum(each > 0 for each in less)} of {len(less)}"
        cells_of = [
            f"{100 * mean(row.params for row in own):.0f} %",
            spread([row.train for row in own]),
            spread([row.test for row in own]),
            spread([row.gap for row in own]),
            *(("", "") if name == DENSE else (spread(less), wins)),
        ]
        lines.append(f"| {name} | {' | '.join(cells_of)} |")
    return "\n".join(lines)


def main() -> int:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="cancer,digits,wine,housing")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "generalization")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.tasks.split(","):
        if name == "housing" and not TABLE.exists():
            print(f"housing is left out: there is no {TABLE}", file=sys.stderr)
            continue
        cells = [cell(name, seed, options.output) for seed in range(options.seeds)]
        print(f"\n{name}\n\n{table_of(cells)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
