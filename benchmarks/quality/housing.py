"""A small network on a table: California housing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from plain_training import train_
from resnet20 import FOLDER
from torch import Tensor, nn

from l0compress.data import Data, Split
from l0compress.loading import DataSource, load_data
from l0compress.pipeline.sources import prepare
from l0compress.training.settings import FinetuneSettings
from quality.cells import RIVALS, Grid
from quality.problem import Problem, Score, Task, fewer, squared_errors

TABLE = FOLDER / "housing" / "housing.csv"
DENSE_EPOCHS, DENSE_RATE = 60, 2e-3
WIDTHS = (128, 64)


def housing() -> Data:
    """The table as the command line reads it, its target standardised by the training part."""
    data = load_data(DataSource(str(TABLE), target_column="median_house_value"))
    prices = targets_of(data.train)
    mean, deviation = prices.mean(), prices.std()

    def standardised(part: Split) -> Split:
        return Split(part.inputs, ((targets_of(part) - mean) / deviation).float())

    parts = data.parts().items()
    return replace(data, **{name: standardised(part) for name, part in parts if isinstance(part, Split)})


def targets_of(part: object) -> Tensor:
    """float64 targets of a part that has them."""
    if not isinstance(part, Split) or part.targets is None:
        raise TypeError("the table has a target in every row")
    return part.targets.double()


def regressor(features: int) -> nn.Module:
    """Two hidden layers and one number."""
    first, second = WIDTHS
    layers = (nn.Linear(features, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 1))
    return nn.Sequential(*layers)


def make_dense(path: Path, taste: bool, *, data: Data | None = None) -> None:
    data = housing() if data is None else data
    torch.manual_seed(0)
    model = regressor(_features(data))
    settings = FinetuneSettings(epochs=2 if taste else DENSE_EPOCHS, learning_rate=DENSE_RATE, weight_decay=0.01)
    train_(model, fewer(data) if taste else data, settings)
    torch.save(model.state_dict(), path)


def load(path: Path, *, data: Data | None = None) -> Problem:
    data = housing() if data is None else data
    model = regressor(_features(data))
    model.load_state_dict(torch.load(path, weights_only=True))
    prepared = prepare(model.eval(), data)
    return Problem(prepared.graph, prepared.data, module=model)


def _features(data: Data) -> int:
    return next(iter(data.train.batches(1))).args[0].shape[1]


HOUSING = Task(
    title="A regressor on California housing",
    grid=Grid(
        "housing",
        "macs",
        (0.5, 0.25),
        (0, 10),
        quick=((0.5, 0), (0.25, 0), (0.5, 10), (0.25, 10)),
        rivals=RIVALS,
    ),
    score=Score("squared error in % of the variance", squared_errors, scale=100),
    about=f"Hidden layers of {WIDTHS[0]} and {WIDTHS[1]} units, trained for {DENSE_EPOCHS} epochs on 60 % of the rows.",
    missing=lambda: None if TABLE.exists() else f"{TABLE} does not exist",
    make_dense=make_dense,
    load=load,
)
