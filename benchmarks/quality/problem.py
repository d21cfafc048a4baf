"""A task as the harness sees it: a dense model, data, and how a model is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from l0compress.data import AnySplit, Batch, Data, Split
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.cost import cost
from l0compress.training.losses import cross_entropy
from l0compress.training.outputs import logits_of
from quality.cells import Grid

# Runs without training get so many samples, without labels; the last eighth of them is what they may try things on.
CALIBRATION_SAMPLES = 512
SMOKE_SAMPLES = 256


@dataclass(frozen=True)
class Score:
    """How a model is judged on a part of the data.

    ``of`` maps outputs and targets of a batch to one number a sample, the mean of which is multiplied by ``scale``.
    """

    name: str
    of: Callable[[object, Tensor], Tensor]
    scale: float = 1.0
    higher_is_better: bool = False
    digits: int = 2

    @torch.no_grad()
    def __call__(self, module: nn.Module, split: AnySplit, *, batch_size: int = 256) -> float:
        module.eval()
        values = [self.of(batch.run(module), _targets(batch)).double().flatten() for batch in split.batches(batch_size)]
        return self.scale * float(torch.cat(values).mean())

    def better(self, ours: float, theirs: float) -> float:
        """By how much ``ours`` is better."""
        return ours - theirs if self.higher_is_better else theirs - ours


def _targets(batch: Batch) -> Tensor:
    if batch.targets is None:
        raise ValueError("a score needs targets")
    return batch.targets


def hits(outputs: object, targets: Tensor) -> Tensor:
    """1 where the predicted class is right.

    >>> hits(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0]))
    tensor([1., 0.])
    """
    return (logits_of(outputs).argmax(-1) == targets).float()


def misses(outputs: object, targets: Tensor) -> Tensor:
    """1 where the predicted class is wrong."""
    return 1 - hits(outputs, targets)


def squared_errors(outputs: object, targets: Tensor) -> Tensor:
    """Squared errors of predictions ``(n, 1)`` or ``(n,)``."""
    return (logits_of(outputs).flatten() - targets.flatten()).square()


def surprise(outputs: object, targets: Tensor) -> Tensor:
    """Nats that the right next token costs, the mean of a sequence: ``(n,)`` from ``(n, length, tokens)``.

    >>> surprise(torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.long))
    tensor([2.0794])
    """
    logits = logits_of(outputs)
    return torch.stack([cross_entropy(row, wanted) for row, wanted in zip(logits, targets, strict=True)])


@dataclass(frozen=True, eq=False)
class Problem:
    """A dense model and its data, all parts labelled; ``excluded`` parameters are not what a budget is a share of.

    ``module`` computes what the graph does, in layers that Torch-Pruning can cut; None where there is no such module.
    """

    graph: CapturedGraph
    data: Data
    excluded: int = 0
    module: nn.Module | None = None

    def target(self, unit: str, budget: float) -> dict[str, float]:
        """What ``finetune`` is asked for."""
        if not self.excluded:
            return {unit: budget}
        return {unit: self.excluded + int(budget * (cost(self.graph).get(unit) - self.excluded))}

    def calibration(self, seed: int) -> Data:
        """What a run without training gets: few samples, chosen by the seed, without labels, and no test part."""
        chosen = self._chosen(seed)
        held_out = len(chosen) // 8
        train, val = (_unlabelled(self.data.train, part) for part in (chosen[held_out:], chosen[:held_out]))
        return replace(self.data, train=train, val=val, test=None, augment=None)

    def scoring(self, seed: int) -> Split:
        """The same few samples with their labels, for scores that need gradients of the loss."""
        return Split.of(_in_memory(self.data.train).take(self._chosen(seed)))

    def _chosen(self, seed: int) -> Tensor:
        return _some(self.data.train, CALIBRATION_SAMPLES, seed=seed)


def _unlabelled(split: AnySplit, index: Tensor) -> Split:
    return Split.of(replace(_in_memory(split).take(index), targets=None))


def _in_memory(split: AnySplit) -> Split:
    if not isinstance(split, Split):
        raise TypeError("samples are chosen from data in memory alone")
    return split


@dataclass(frozen=True, eq=False)
class Task:
    """One task of the benchmark.

    Attributes:
        title: for the page.
        grid: what is measured.
        score: how.
        about: one paragraph for the page.
        missing: why it cannot run here, or None.
        make_dense: makes what is needed at a new path, a file or a folder; a taste of it where the flag says so.
        load: the dense model from there, and its data.
    """

    title: str
    grid: Grid
    score: Score
    about: str
    missing: Callable[[], str | None]
    make_dense: Callable[[Path, bool], None]
    load: Callable[[Path], Problem]

    @property
    def name(self) -> str:
        return self.grid.task


def fewer(data: Data, samples: int = SMOKE_SAMPLES) -> Data:
    """Some samples of every part: enough to see that everything runs."""
    parts = {name: part for name, part in data.parts().items() if isinstance(part, Split)}
    return replace(data, **{name: Split.of(part.take(_some(part, samples, seed=0))) for name, part in parts.items()})


def _some(split: AnySplit, samples: int, *, seed: int) -> Tensor:
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:samples]
