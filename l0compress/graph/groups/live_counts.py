"""Live counts: how many components along a line are left, the factors that every cost is a product of."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from l0compress.devices import constant_on
from l0compress.graph.groups.components import Components

Term = tuple[float, Sequence[int], frozenset[str]]  # coefficient, lines, the nodes it is for


@dataclass(frozen=True, eq=False)
class Terms:
    """A sum of ``coefficient * product of live counts``.

    Attributes:
        coefficients: float64 (terms,).
        lines: int64 (terms, factors): which live counts are multiplied; padded with the index of a constant one.
        owners: the nodes that each term is for; it falls away with the last of them.
    """

    coefficients: Tensor
    lines: Tensor
    owners: tuple[frozenset[str], ...]

    def weights(self, live: frozenset[str] | None, like: Tensor) -> Tensor:
        """The coefficients, zero for terms that no node in ``live`` owns, on the device and in the dtype of ``like``.

        With ``live`` None all are live.
        """
        if live is None:
            return constant_on(self.coefficients, like.device, like.dtype)
        owned = torch.tensor([not live.isdisjoint(owners) for owners in self.owners], dtype=torch.float64)
        return (self.coefficients * owned).to(like)

    def total(self, counts: Tensor, live: frozenset[str] | None) -> Tensor:
        """The sum, a scalar, of the terms that nodes in ``live`` own; of all of them with None."""
        return (self.weights(live, counts) * self.products(counts)).sum()

    def products(self, counts: Tensor) -> Tensor:
        """The product of each term's live counts, the last of which is the constant one."""
        lines = constant_on(self.lines, counts.device)
        # Column by column: the backward of prod() is slow.
        return reduce(operator.mul, (counts.index_select(0, column) for column in lines.unbind(-1)))


@dataclass(frozen=True, eq=False)
class LiveCounts:
    """The live counts of distinct lines.

    Attributes:
        members: int64: the components of all lines, one line after the other.
        line_of: int64: the line of each member.
        num_lines: how many lines there are.
    """

    members: Tensor
    line_of: Tensor
    num_lines: int

    def of(self, alive: Tensor) -> Tensor:
        """The live counts of all lines, and the constant one that terms are padded with: (num_lines + 1,).

        Differentiable in ``alive`` (components,), the probability that each is left, on whose device the result is.
        """
        members, line_of = (constant_on(index, alive.device) for index in (self.members, self.line_of))
        counts = alive.new_zeros(self.num_lines).index_add(0, line_of, alive.index_select(0, members))
        return torch.cat([counts, counts.new_ones(1)])

    def terms(self, found: Sequence[Term]) -> Terms:
        """Terms whose lines are these."""
        width = max((len(lines) for _, lines, _ in found), default=1) or 1
        table = torch.full((len(found), width), self.num_lines, dtype=torch.long)
        for row, (_, lines, _) in enumerate(found):
            table[row, : len(lines)] = torch.tensor(lines, dtype=torch.long)
        coefficients = torch.tensor([coefficient for coefficient, _, _ in found], dtype=torch.float64)
        return Terms(coefficients, table, tuple(owners for _, _, owners in found))


class LineIndex:
    """Numbers distinct lines of components, by content, in the order in which they are asked for."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.arrays: list[np.ndarray] = []
        self._by_content: dict[bytes, int] = {}

    def index(self, labels: Tensor) -> int:
        """The number of the line of these labels."""
        array = self.components.of(labels)
        key = array.tobytes()
        if key not in self._by_content:
            self._by_content[key] = len(self.arrays)
            self.arrays.append(array)
        return self._by_content[key]

    def counts(self) -> LiveCounts:
        """What counts along the lines that have been asked for."""
        sizes = [len(array) for array in self.arrays]
        members = np.concatenate(self.arrays) if self.arrays else np.zeros(0, dtype=np.int64)
        line_of = np.repeat(np.arange(len(sizes)), sizes)
        members, line_of = (torch.from_numpy(array.astype(np.int64)) for array in (members, line_of))
        return LiveCounts(members, line_of, len(sizes))
