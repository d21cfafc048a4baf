"""The factors that reads are multiplied by: products of gates, one factor per read."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor, nn

from l0compress.gates.hard_concrete import HardConcrete
from l0compress.graph.groups.reads import Read


class ReadFactors(nn.Module):
    """Computes the factor of every read from one draw of the gates: a list of tensors, in the order of ``reads``.

    ``dtypes`` are those of the multiplied values, one per read; factors have the same dtypes.
    """

    def __init__(self, reads: tuple[Read, ...], gates: HardConcrete, dtypes: tuple[torch.dtype, ...]) -> None:
        super().__init__()
        self.gates = gates
        self.shapes = tuple(read.shape for read in reads)
        self.dtypes = dtypes
        tables, self._places = _gathered(read.moves for read in reads)
        # Not buffers: code that averages the buffers of a network (AveragedModel) would average these indices too.
        self._tables = tuple(torch.cat(table) for table in tables)
        self._sizes = tuple([len(moves) for moves in table] for table in tables)

    def forward(self) -> list[Tensor]:
        return self.factors(self.gates())

    def factors(self, z: Tensor) -> list[Tensor]:
        """Return the read factors for given gate values ``z`` of shape ``(num_moves,)``."""
        extended = torch.cat([z, z.new_ones(1)])
        found = [
            product_of(extended, table.to(z.device)).split(sizes)
            for table, sizes in zip(self._tables, self._sizes, strict=True)
        ]
        return [
            found[table][position].view(shape).to(dtype)
            for (table, position), shape, dtype in zip(self._places, self.shapes, self.dtypes, strict=True)
        ]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ReadFactors:
        self.dtypes = tuple(converted_type(fn, dtype) for dtype in self.dtypes)
        self._tables = tuple(fn(table) for table in self._tables)
        return super()._apply(fn, recurse)


def _gathered(moves: Iterable[Tensor]) -> tuple[list[list[Tensor]], tuple[tuple[int, int], ...]]:
    """Return distinct tables of moves, those of one width together, and where each of ``moves`` stands among them.

    Layers that read the same channels share one factor, and few gathers make all of them.
    """
    tables: dict[int, list[Tensor]] = {}
    known: dict[tuple[int, bytes], int] = {}
    places = []
    for table in moves:
        alike = tables.setdefault(table.shape[1], [])
        key = (table.shape[1], table.numpy().tobytes())
        if key not in known:
            known[key] = len(alike)
            alike.append(table)
        places.append((list(tables).index(table.shape[1]), known[key]))
    return list(tables.values()), tuple(places)


def converted_type(fn: Callable[[Tensor], Tensor], dtype: torch.dtype) -> torch.dtype:
    """Return what a conversion of modules (``double``, ``to``, ``cuda``) turns ``dtype`` into.

    >>> converted_type(torch.Tensor.double, torch.float32), converted_type(torch.Tensor.cpu, torch.float32)
    (torch.float64, torch.float32)
    """
    return fn(torch.empty(0, dtype=dtype)).dtype


def product_of(z: Tensor, moves: Tensor) -> Tensor:
    """Return ``z[moves].prod(-1)`` for ``moves`` of shape ``(channels, K)``, both on one device.

    >>> product_of(torch.tensor([0.5, 0.25, 1.0]), torch.tensor([[0, 2], [0, 1]]))
    tensor([0.5000, 0.1250])
    """
    # Column by column: the backward of prod() is slow for factors of exactly 0, which gates often are.
    return reduce(operator.mul, (z.index_select(0, column) for column in moves.unbind(-1)))
