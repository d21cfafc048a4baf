"""What a model costs: parameters, multiply-accumulates a sample, bytes of weights, as they are and in an int8 file.

:func:`cost` reads them off a graph's shapes. :class:`CostModel` predicts them for any plan, and in expectation under
gate probabilities, as a sum of products of live counts; the two agree exactly on every shrunk graph.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from l0compress.devices import constant_on
from l0compress.graph.capture import CapturedGraph, check_captured
from l0compress.graph.components import Components
from l0compress.graph.int8 import int8_terms, size_of
from l0compress.graph.labels import Labelled, shape_of
from l0compress.graph.network import attribute, op_name
from l0compress.graph.recurrent import is_recurrent
from l0compress.graph.rules.registry import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, sized_by_data
from l0compress.graph.values import core, flattened, varying

Unit = Literal["params", "macs", "bytes", "int8_bytes"]
UNITS: tuple[Unit, ...] = ("params", "macs", "bytes", "int8_bytes")

_Term = tuple[float, list[int], frozenset[str]]  # coefficient, lines, the nodes it is for


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        params: elements of distinct parameters (tied ones count once).
        macs: multiply-accumulates of linear, convolution, recurrent, matrix product and attention nodes, a sample.
        size_bytes: bytes of parameters and floating-point buffers.
        int8_bytes: bytes of the same in the int8 file, see :mod:`l0compress.graph.int8`; 0 where nobody counted them.
            It says what another program makes of the model, so it is no part of what two equal costs have in common.
    """

    params: int
    macs: int
    size_bytes: int
    int8_bytes: int = field(default=0, repr=False, compare=False)

    def get(self, unit: str) -> int:
        """The cost in one unit: ``params``, ``macs``, ``bytes`` or ``int8_bytes``.

        Examples:
            >>> Cost(params=10, macs=20, size_bytes=40).get("bytes")
            40
        """
        units = {"params": self.params, "macs": self.macs, "bytes": self.size_bytes, "int8_bytes": self.int8_bytes}
        return units[unit]


def cost(graph: CapturedGraph) -> Cost:
    """Count a graph's cost from the shapes of its nodes.

    Examples:
        >>> from l0compress.graph.capture import capture
        >>> cost(capture(nn.Linear(4, 3), (torch.zeros(2, 4),)))
        Cost(params=15, macs=12, size_bytes=60)

    Raises:
        InputError: ``graph`` is no captured graph.
    """
    check_captured(graph, "cost")
    module = graph.graph_module
    names = {str(node.target) for node in graph.nodes() if node.op == "get_attr"}
    tensors = {id(tensor): tensor for name in names if isinstance(tensor := attribute(module, name), Tensor)}
    params = sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, nn.Parameter))
    size_bytes = sum(
        tensor.numel() * tensor.element_size() for tensor in tensors.values() if tensor.is_floating_point()
    )
    macs = sum(node_macs(node) for node in graph.nodes())
    in_int8 = sum(size_of(terms, tuple(tensors[key].shape)) for key, terms in int8_terms(graph).items())
    return Cost(params, round(macs / graph.batch_size), size_bytes, round(in_int8))


def node_macs(node: fx.Node) -> int:
    """Multiply-accumulates of one node over the whole example batch."""
    if node.op != "call_function" or sized_by_data(node):  # there is no number to count where the data decides
        return 0
    name = op_name(node)
    if name == "scaled_dot_product_attention":
        query, key, value = (_shape(node.args[i]) for i in range(3))
        return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if name in ("linear", "mm", "bmm", "matmul", "mv", "dot"):
        return prod(_shape(node)) * _shape(node.args[0])[-1]
    if name in ("_grouped_mm", "transformers::grouped_mm_fallback"):
        return prod(_shape(node)) * _shape(node.args[0])[-1]
    if name in ("addmm", "baddbmm"):
        return prod(_shape(node)) * _shape(node.args[1])[-1]
    if name in CONVOLUTIONS:
        return prod(_shape(node)) * prod(_shape(node.args[1])[1:])
    if name == "bilinear":
        return prod(_shape(node)[:-1]) * prod(_shape(node.args[2]))
    if name in TRANSPOSED_CONVOLUTIONS:
        return prod(_shape(node.args[0])) * prod(_shape(node.args[1])[1:])
    if is_recurrent(node):
        weights: Any = node.args[2]
        return prod(_shape(node.args[0])[:2]) * sum(prod(_shape(w)) for w in weights if len(_shape(w)) == 2)
    return 0


def _shape(node: object) -> tuple[int, ...]:
    if not isinstance(node, fx.Node):
        raise TypeError(f"expected a node of the graph, got {node!r}")
    return shape_of(node.meta["val"])


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

    def products(self, counts: Tensor) -> Tensor:
        """The product of each term's live counts, the last of which is the constant one."""
        lines = constant_on(self.lines, counts.device)
        return counts.index_select(0, lines.flatten()).view(lines.shape).prod(-1)


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
        members, line_of = (constant_on(index, alive.device) for index in (self.members, self.line_of))
        counts = alive.new_zeros(self.num_lines).index_add(0, line_of, alive.index_select(0, members))
        counts = torch.cat([counts, counts.new_ones(1)])
        terms = self.terms[unit]
        return (terms.weights(live, counts) * terms.products(counts)).sum()


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
