"""Cost as a function of what is alive: exact for a plan, and in expectation under gate probabilities.

A cost is a sum of products of live counts, for example rows times columns of a weight.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from l0compress.graph.groups.components import Components
from l0compress.graph.groups.int8 import int8_terms
from l0compress.graph.groups.live_counts import LineIndex, LiveCounts, Term, Terms
from l0compress.graph.labels.values import core, flattened, varying
from l0compress.graph.labels.walk import Labelled
from l0compress.graph.nodes.network import attribute


@dataclass(frozen=True, eq=False)
class CostModel:
    """Cost as a function of which components are alive.

    Attributes:
        lines: what the terms multiply.
        terms: the terms of each unit.
    """

    lines: LiveCounts
    terms: dict[str, Terms]

    def evaluate(self, alive: Tensor, unit: str, *, live: frozenset[str] | None = None) -> Tensor:
        """Cost in ``unit`` as a scalar, given the probability that each component is alive.

        Exact for 0 and 1, and in expectation where the factors of a product are independent: E[ΣaΣb] = ΣE[a]ΣE[b].
        Differentiable in ``alive`` (components,), on whose device the result is. What only nodes outside ``live`` need
        costs nothing.
        """
        return self.terms[unit].total(self.lines.of(alive), live)


def cost_model(labelled: Labelled, components: Components) -> CostModel:
    """Collect the terms of every parameter, buffer and contraction."""
    lines = LineIndex(components)
    params: list[Term] = []
    size_bytes: list[Term] = []
    in_int8: list[Term] = []
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
    macs: list[Term] = [
        (fact.coefficient, [lines.index(flattened(plane)) for plane in fact.planes], frozenset({fact.node.name}))
        for fact in labelled.space.macs
    ]
    units = {"params": params, "macs": macs, "bytes": size_bytes, "int8_bytes": in_int8}
    counts = lines.counts()
    return CostModel(counts, {unit: counts.terms(found) for unit, found in units.items()})


def _readers(labelled: Labelled) -> dict[int, frozenset[str]]:
    """The nodes that stand for each tensor, which a graph may name more than once."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for node in labelled.graph.nodes():
        if node.op == "get_attr":
            found[id(attribute(labelled.graph.graph_module, str(node.target)))].add(node.name)
    return {key: frozenset(names) for key, names in found.items()}
