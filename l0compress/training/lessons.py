"""What the dense model answers to the training samples, asked once where every epoch would hear the same.

requires: a teacher in evaluation mode, and the training part.
ensures:  its answers to the batches of any epoch, or nothing where they have to be asked for batch by batch: samples
          are not in memory, an answer depends on the others in the batch, or all of them take too much memory.
"""

from __future__ import annotations

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
from l0compress.training.outputs import outputs_of

MOST_BYTES = 2**28
_BATCH = 256
# Rows that are asked for a second time, out of order and among others.
_ASKED_AGAIN = 3
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5


@dataclass(frozen=True, eq=False)
class Answers:
    """A teacher's outputs for a whole part, sample by sample: tensors ``(n, ...)`` in the tree that it returns."""

    columns: tuple[Tensor, ...]
    tree: pytree.TreeSpec

    def rows(self, index: slice | Tensor) -> Any:
        """What the teacher returned for some samples."""
        return pytree.tree_unflatten([column[index] for column in self.columns], self.tree)


@dataclass(frozen=True, eq=False)
class Lessons:
    """A teacher and the part that it teaches; its answers are asked for when they are first needed."""

    teacher: nn.Module
    split: AnySplit
    device: str = "cpu"
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @cached_property
    def answers(self) -> Answers | None:
        """The answers to all samples; None where they cannot be known beforehand."""
        return self._asked(self.split) if isinstance(self.split, Split) else None

    def batches(self, batch_size: int, *, seed: int) -> Iterator[Any]:
        """The answers to the batches that the part yields with these arguments, the last small one left out."""
        if self.answers is not None:
            for index in cut(len(self.split), batch_size, seed, drop_last=True):
                yield pytree.tree_map(lambda tensor: tensor.to(self.device), self.answers.rows(index))

    def answer(self, batch: Batch) -> Any:
        """What the teacher returns for one batch, without gradients."""
        with self.context():
            return outputs_of(self.teacher, batch.to(self.device))

    def _asked(self, split: Split) -> Answers | None:
        found: list[list[Tensor]] = []
        tree: pytree.TreeSpec | None = None
        for batch in split.batches(_BATCH):
            leaves, tree = pytree.tree_flatten(self.answer(batch))
            if not all(isinstance(leaf, Tensor) and leaf.shape[:1] == (len(batch),) for leaf in leaves):
                return None
            if not found and sum(leaf.nbytes for leaf in leaves) / len(batch) * len(split) > MOST_BYTES:
                return None
            found.append([leaf.cpu() for leaf in leaves])
        if tree is None:
            return None
        answers = Answers(tuple(torch.cat(column) for column in zip(*found, strict=True)), tree)
        return answers if self._same_again(split, answers) else None

    def _same_again(self, split: Split, answers: Answers) -> bool:
        """Whether some samples get the same answers in another batch."""
        index = torch.linspace(len(split) - 1, 0, min(_ASKED_AGAIN, len(split))).long()
        again = pytree.tree_leaves(self.answer(split.take(index)))
        before = pytree.tree_leaves(answers.rows(index))
        return all(
            one.shape == other.shape and torch.allclose(one.cpu(), other, _RELATIVE, _ABSOLUTE, equal_nan=True)
            for one, other in zip(again, before, strict=True)
        )
