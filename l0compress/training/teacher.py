"""Distillation: what the dense model, the teacher, returns for the training samples, and how long the student needs it.

Where every epoch would get the same outputs, the teacher runs once over all samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from l0compress.data import AnySplit, Batch, Split
from l0compress.data.streams import cut
from l0compress.training.evaluation import Evaluation
from l0compress.training.outputs import outputs_of
from l0compress.training.reading import Reading

MOST_BYTES = 2**28
_BATCH = 256
# Rows that are computed a second time, out of order and among others.
_REPEATED = 3
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, eq=False)
class Outputs:
    """A teacher's outputs for a whole part, sample by sample: tensors ``(n, ...)`` in the tree that it returns."""

    columns: tuple[Tensor, ...]
    tree: pytree.TreeSpec

    def rows(self, index: slice | Tensor) -> Any:
        """What the teacher returned for some samples."""
        return pytree.tree_unflatten([column[index] for column in self.columns], self.tree)


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """The outputs of ``teacher``, in evaluation mode, for ``split``; computed when they are first needed."""

    teacher: nn.Module
    split: AnySplit
    device: str = "cpu"
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @cached_property
    def outputs(self) -> Outputs | None:
        """The outputs for all samples.

        None where they have to be computed batch by batch: samples are not in memory, an output depends on the others
        in the batch, or all of them take too much memory.
        """
        return self._computed(self.split) if isinstance(self.split, Split) else None

    def batches(self, batch_size: int, *, seed: int) -> Iterator[Any]:
        """The outputs for the batches that the part yields with these arguments, the last small one left out."""
        if self.outputs is not None:
            for index in cut(len(self.split), batch_size, seed, drop_last=True):
                yield pytree.tree_map(lambda tensor: tensor.to(self.device), self.outputs.rows(index))

    def _run(self, batch: Batch) -> Any:
        with self.context():
            return outputs_of(self.teacher, batch.to(self.device))

    def _computed(self, split: Split) -> Outputs | None:
        found: list[list[Tensor]] = []
        tree: pytree.TreeSpec | None = None
        for batch in split.batches(_BATCH):
            leaves, tree = pytree.tree_flatten(self._run(batch))
            if not all(isinstance(leaf, Tensor) and leaf.shape[:1] == (len(batch),) for leaf in leaves):
                return None
            if not found and sum(leaf.nbytes for leaf in leaves) / len(batch) * len(split) > MOST_BYTES:
                return None
            found.append([leaf.cpu() for leaf in leaves])
        if tree is None:
            return None
        outputs = Outputs(tuple(torch.cat(column) for column in zip(*found, strict=True)), tree)
        return outputs if self._same_again(split, outputs) else None

    def _same_again(self, split: Split, outputs: Outputs) -> bool:
        """Whether some samples get the same outputs in another batch."""
        index = torch.linspace(len(split) - 1, 0, min(_REPEATED, len(split))).long()
        again = pytree.tree_leaves(self._run(split.take(index)))
        before = pytree.tree_leaves(outputs.rows(index))
        return all(
            one.shape == other.shape and torch.allclose(one.cpu(), other, _RELATIVE, _ABSOLUTE, equal_nan=True)
            for one, other in zip(again, before, strict=True)
        )


def outgrown(reading: Reading, student: Evaluation, teacher: Evaluation) -> bool:
    """Whether the student is better than its teacher beyond doubt, which then has only its mistakes left to teach.

    That is so where labels count hits, and the student's metric on the validation part is ahead by more than two
    standard errors of the difference.

    >>> dense = Evaluation(loss=0.5, metric=0.8, metric_name="accuracy", num_samples=400)
    >>> [outgrown(Reading("classes"), Evaluation(0.5, metric, "accuracy", 400), dense) for metric in (0.85, 0.86)]
    [False, True]
    """
    if not (reading.labelled and reading.counts_hits):
        return False
    variances = (one.metric * (1 - one.metric) / max(one.num_samples, 1) for one in (student, teacher))
    return student.metric - teacher.metric > _STANDARD_ERRORS * math.sqrt(sum(variances))
