"""Roots: why a tensor has no channels where another one that meets it has some.

requires: the values and the frozen facts of the label pass.
ensures:  for a fact of the kind :data:`MEETS` the operator behind it that stopped the channels, as far as there is one.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, fx

from l0compress.graph.labels.space import MEETS, FrozenFact
from l0compress.graph.labels.values import Value, flattened
from l0compress.graph.labels.walk import Labelled


def root_of(labelled: Labelled, fact: FrozenFact) -> FrozenFact | fx.Node | None:
    """What is behind the tensor without channels that those of ``fact`` meet.

    Returns:
        The nearest fact upstream that froze channels on their way for another reason; where there is none, the input
        or the constant that the tensor comes from; None where neither is found.
    """
    flowing = _flowing(labelled)
    facts = {
        other.node: other
        for other in reversed(labelled.space.frozen)
        if other.reason != MEETS and _stops(labelled, other, flowing)
    }
    pending = deque(source for source in fact.node.all_input_nodes if not _carries(labelled, source, fact.labels))
    seen, origin = set(pending), None
    while pending:
        node = pending.popleft()
        if node in facts:
            return facts[node]
        if origin is None and node.op in ("placeholder", "get_attr") and not _planes(labelled, node):
            origin = node
        fresh = [source for source in node.all_input_nodes if source not in seen]
        pending.extend(fresh)
        seen.update(fresh)
    return origin


def _flowing(labelled: Labelled) -> set[fx.Node]:
    """The nodes that depend on the model's input; weights and what is computed from them alone do not."""
    found: set[fx.Node] = set()
    for node in labelled.graph.nodes():
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _stops(labelled: Labelled, fact: FrozenFact, flowing: set[fx.Node]) -> bool:
    """Whether a fact froze channels on their way through the model, and not a dimension of a weight alone."""
    sources = [source for source in fact.node.all_input_nodes if source in flowing]
    return any(_carries(labelled, source, fact.labels) for source in sources)


def _carries(labelled: Labelled, node: fx.Node, labels: Tensor) -> bool:
    return any(bool(torch.isin(labels, flattened(plane)).any()) for plane in _planes(labelled, node))


def _planes(labelled: Labelled, node: fx.Node) -> list[Tensor]:
    entry = labelled.values.get(node.name)
    values = entry if isinstance(entry, tuple) else (entry,)
    return [plane for value in values if isinstance(value, Value) for plane in value.planes]
