"""Which rows of a layer's input and output count: those that no mask hides, and of many a share drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Chooses rows of one batch.

    Attributes:
        mask: bool, True = counts, of the shape of the rows that it speaks of; None where all count.
        seed: draws the share of rows, from a generator of its own.
    """

    mask: Tensor | None
    seed: int

    def chosen(self, row_shape: Sequence[int], most: int, device: torch.device | str = "cpu") -> Tensor | None:
        """Flat positions of at most ``most`` rows, in order, on a device; None where all rows are chosen.

        >>> mask = torch.tensor([[True, True, False], [True, False, False]])
        >>> Rows(mask, 0).chosen((2, 3), 10), Rows(mask, 0).chosen((2,), 10), len(Rows(None, 0).chosen((4, 4), 5))
        (tensor([0, 1, 3]), None, 5)
        """
        mask = self.mask
        speaks = mask is not None and tuple(row_shape) in (tuple(mask.shape), (mask.numel(),))
        rows = mask.flatten().nonzero().flatten() if mask is not None and speaks else None
        count = prod(row_shape) if rows is None else len(rows)
        if count <= most:
            return rows
        # Drawn on the CPU, so that every device gets the same.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[:most]
        drawn = order.sort().values.to(device)
        return drawn if rows is None else rows[drawn]
