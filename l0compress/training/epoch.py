"""Where a run stands within an epoch, and what its batches depend on there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Epoch:
    """One epoch: how far it has come, and the random states that its batches depend on.

    Attributes:
        number: counted from 0 over both phases.
        augmentation: what augmentation draws from.
        loader_states: the states of the data loader's own generators when the epoch began.
        step: batches done.
        total: the sum of their losses.
        resume: puts the global random state back once the batches that were done before are skipped.
    """

    number: int
    augmentation: torch.Generator
    loader_states: list[Tensor]
    step: int = 0
    total: float = 0.0
    resume: Callable[[], None] | None = None

    @property
    def where(self) -> str:
        """The position for messages."""
        return f"step {self.step + 1} of epoch {self.number + 1}"
