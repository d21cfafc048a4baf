"""One model of the catalogue, and the inputs that many of them take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue.

    Attributes:
        name: unique, ``<origin>/<model>``.
        kind: ``conv``, ``transformer`` or ``other``: which bar on the prunable share applies.
        build: makes the model with random weights and example inputs of batch 2.
        dynamic: as in :func:`l0compress.capture`.
        rival: whether Torch-Pruning is tried beside it.
    """

    name: str
    kind: str
    build: Callable[[], Built]
    dynamic: Any = "batch"
    rival: bool = field(default=False)

    @property
    def origin(self) -> str:
        return self.name.split("/")[0]


def image(size: int, *, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(length: int = 12, *, vocabulary: int = 90) -> Tensor:
    """Token ids from 5 up, so that no special token of a tiny configuration turns up by chance."""
    return torch.randint(5, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))
