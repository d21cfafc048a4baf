"""What is measured: one cell is one compressed (or dense) model, made by one method with one seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from l0compress.training.methods import OF_WEIGHTS
from l0compress.training.settings import GATED_METHODS, METHOD_NAMES, TRAINED_METHODS

DENSE = "dense"
METHODS = ("l0", "fisher", "magnitude")
# What ``--methods all`` asks for, in the order of the tables; layer-magnitude decides on single weights alone.
STRUCTURED_METHODS = tuple(name for name in METHOD_NAMES if name != "layer-magnitude")
SPARSE_METHODS = tuple(name for name in METHOD_NAMES if name in {*GATED_METHODS, "layer-magnitude", *OF_WEIGHTS})
# Without epochs these decide nothing; learned gates leave it to a score.
NEED_EPOCHS = tuple(name for name in TRAINED_METHODS if name not in GATED_METHODS)
# Of other projects, ``benchmarks/rivals``: Torch-Pruning leaves all repair to training, and onnxsim trains nothing.
TORCH_PRUNING = ("torch-pruning-magnitude", "torch-pruning-taylor", "torch-pruning-hessian")
ONNXSIM = "onnxsim"
RIVALS = (*TORCH_PRUNING, ONNXSIM)


@dataclass(frozen=True, order=True)
class Cell:
    """One model to be made.

    ``budget`` is a share of the dense model's cost (a float) or a number of units (an int). The method ``"dense"``
    compresses nothing: the model as it is (no epochs), or trained on for as many epochs as the others get.
    """

    task: str
    unit: str
    budget: float
    epochs: int
    method: str
    seed: int
    granularity: str = "structured"

    @property
    def key(self) -> str:
        """Its name in the records.

        >>> Cell("sst2", "macs", 0.5, 4, "l0", 0).key
        'sst2 structured macs=0.5 epochs=4 l0 seed=0'
        """
        return (
            f"{self.task} {self.granularity} {self.unit}={self.budget:g} epochs={self.epochs} {self.method} "
            f"seed={self.seed}"
        )


@dataclass(frozen=True)
class Grid:
    """The cells of one task.

    Attributes:
        task: its name.
        unit: of its budgets.
        budgets: shares or numbers of units.
        epochs: for each budget, all of these.
        extra: further pairs of budget and epochs.
        sparse: budgets for single weights, with the most epochs; by every method asked for that can.
        quick: the pairs of budget and epochs that ``--quick`` runs, with the time for the dense model in mind.
        rivals: the methods of other projects that can be given this task.
    """

    task: str
    unit: str
    budgets: tuple[float, ...]
    epochs: tuple[int, ...]
    extra: tuple[tuple[float, int], ...] = ()
    sparse: tuple[float, ...] = ()
    quick: tuple[tuple[float, int], ...] = ()
    rivals: tuple[str, ...] = ()

    def pairs(self, *, quick: bool) -> list[tuple[float, int]]:
        """Budgets and epochs, the shortest runs first."""
        every = [(budget, epochs) for epochs in self.epochs for budget in self.budgets]
        return list(self.quick) if quick else sorted([*every, *self.extra], key=lambda pair: pair[1])


@dataclass(frozen=True)
class Selection:
    """What of the grids is asked for: of budgets and epochs all where none are named; ``most_epochs`` shortens runs."""

    methods: Sequence[str] = METHODS
    seeds: Sequence[int] = (0, 1, 2)
    budgets: Sequence[float] = ()
    epochs: Sequence[int] = ()
    quick: bool = False
    most_epochs: int | None = None

    def cells(self, grid: Grid) -> list[Cell]:
        """The cells of a task, seed by seed, each after the dense models that it is compared with; maybe none."""
        cells = list(dict.fromkeys(self._seeded(grid)))
        return [Cell(grid.task, grid.unit, 1.0, 0, DENSE, 0), *cells] if cells else []

    def _seeded(self, grid: Grid) -> Iterator[Cell]:
        every = [pair for pair in grid.pairs(quick=self.quick) if self._asked_for(*pair)]
        pairs = [(budget, self._short(epochs)) for budget, epochs in every]
        sparse = [budget for budget in grid.sparse if not self.quick and self._asked_for(budget, max(grid.epochs))]
        for seed in self.seeds:
            for epochs in sorted({epochs for _, epochs in pairs if epochs}):
                yield Cell(grid.task, grid.unit, 1.0, epochs, DENSE, seed)
            for budget, epochs in pairs:
                for method in self.methods:
                    if _decides(method, epochs, grid):
                        yield Cell(grid.task, grid.unit, budget, epochs, method, seed)
            for budget in sparse:
                for method in SPARSE_METHODS:
                    if method in self.methods:
                        yield Cell(grid.task, grid.unit, budget, self._short(max(grid.epochs)), method, seed, "weights")

    def _asked_for(self, budget: float, epochs: int) -> bool:
        return (not self.budgets or budget in self.budgets) and (not self.epochs or epochs in self.epochs)

    def _short(self, epochs: int) -> int:
        return epochs if self.most_epochs is None else min(epochs, self.most_epochs)


def _decides(method: str, epochs: int, grid: Grid) -> bool:
    """Whether a method can decide on channels in so many epochs."""
    if method in RIVALS:
        return method in grid.rivals and (epochs == 0) == (method == ONNXSIM)
    return method in STRUCTURED_METHODS and (epochs > 0 or method not in NEED_EPOCHS)
