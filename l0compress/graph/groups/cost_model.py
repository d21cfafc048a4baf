"""Cost as a function of what is alive: exact for a plan, and in expectation under gate probabilities.

A cost is a sum of products of live counts, for example rows times columns of a weight.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from l0compress.devices import constant_on
from l0compress.graph.groups.components import Components
from l0compress.graph.groups.int8 import int8_terms
from l0compress.graph.labels.values import core, flattened, varying
from l0compress.graph.labels.walk import Labelled
from l0compress.graph.nodes.network import attribute

_Term = tuple[float, list[int], frozenset[str]]  # coefficient, lines, the nodes it is for


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
class CostModel:
    """Cost as a function of which components are alive.

    Attributes:
        members: int64: the components of all lines, one line after the other.
        line_of: int64: the line of each member.
        num_lines: how many lines there are.
        terms: the terms of each unit.
    """

    members: Tensor
    line_of: Tensor
    num_lines: int
    terms: dict[str, Terms]

    def evaluate(self, alive: Tensor, unit: str, *, live: frozenset[str] | None = None) -> Tensor:
        """Cost in ``unit`` as a scalar, given the probability that each component is alive.

        Exact for 0 and 1, and in expectation where the factors of a product are independent: E[ΣaΣb] = ΣE[a]ΣE[b].
        Differentiable in ``alive`` (components,), on whose device the result is. What only nodes outside ``live`` need
        costs nothing.
        """
        return self.terms[unit].total(self.counts(alive), live)

    def counts(self, alive: Tensor) -> Tensor:
        """The live counts of all lines, and the constant one that terms are padded with: (num_lines + 1,)."""
        members, line_of = (constant_on(index, alive.device) for index in (self.members, self.line_of))
        counts = alive.new_zeros(self.num_lines).index_add(0, line_of, alive.index_select(0, members))
        return torch.cat([counts, counts.new_ones(1)])


def cost_model(labelled: Labelled, components: Components) -> CostModel:
    """Collect the terms of every parameter, buffer and contraction."""
    lines = _Lines(components)
    params: list[_Term] = []
    size_bytes: list[_Term] = []
    in_int8: list[_Term] = []
    seen: set[int] = set()
    readers, stored = _readers(labelled), int8_terms(labelled.graph)
    for name, value in labelled.parameters.items():
        tensor = attribute(labelled.graph.graph_module, name)
        if id(tensor) in seen or not tensor.is_floating_point():
            continue
        seen.add(id(tensor))
        found = [lines.index(flattened(plane)) for plane in value.planes]
        rest = tensor.numel() / prod(core(plane).numel() for plane in value.planes)
        size_bytes.append((rest * tensor.element_size(), found, readers[id(tensor)]))
        if isinstance(tensor, nn.Parameter):
            params.append((rest, found, readers[id(tensor)]))
        for each, dims in stored[id(tensor)]:
            planes = [plane for plane in value.planes if varying(plane) <= set(dims)] if dims else []
            alike = prod(tensor.shape[dim] for dim in dims) / prod(core(plane).numel() for plane in planes)
            along = [lines.index(flattened(plane)) for plane in planes]
            in_int8.append((each * alike, along, readers[id(tensor)]))
    macs: list[_Term] = [
        (fact.coefficient, [lines.index(flattened(plane)) for plane in fact.planes], frozenset({fact.node.name}))
        for fact in labelled.space.macs
    ]
    num_lines = len(lines.arrays)
    members = np.concatenate(lines.arrays) if lines.arrays else np.zeros(0, dtype=np.int64)
    line_of = np.repeat(np.arange(num_lines), [len(array) for array in lines.arrays])
    units = {"params": params, "macs": macs, "bytes": size_bytes, "int8_bytes": in_int8}
    return CostModel(
        torch.from_numpy(members.astype(np.int64)),
        torch.from_numpy(line_of.astype(np.int64)),
        num_lines,
        {unit: _terms(found, num_lines) for unit, found in units.items()},
    )


def _readers(labelled: Labelled) -> dict[int, frozenset[str]]:
    """The nodes that stand for each tensor, which a graph may name more than once."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for node in labelled.graph.nodes():
        if node.op == "get_attr":
            found[id(attribute(labelled.graph.graph_module, str(node.target)))].add(node.name)
    return {key: frozenset(names) for key, names in found.items()}


class _Lines:
    """Distinct lines of components, by content."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.arrays: list[np.ndarray] = []
        self.by_content: dict[bytes, int] = {}

    def index(self, labels: Tensor) -> int:
        array = self.components.of(labels)
        key = array.tobytes()
        if key not in self.by_content:
            self.by_content[key] = len(self.arrays)
            self.arrays.append(array)
        return self.by_content[key]


def _terms(found: list[_Term], padding: int) -> Terms:
    width = max((len(lines) for _, lines, _ in found), default=1) or 1
    table = torch.full((len(found), width), padding, dtype=torch.long)
    for row, (_, lines, _) in enumerate(found):
        table[row, : len(lines)] = torch.tensor(lines, dtype=torch.long)
    coefficients = torch.tensor([coefficient for coefficient, _, _ in found], dtype=torch.float64)
    return Terms(coefficients, table, tuple(owners for _, _, owners in found))
