"""An ONNX graph as plain values: what the reader passes to the builder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Node:
    """One use of an operator.

    Attributes:
        operator: its name, prefixed by the domain and two colons unless that is ONNX's own.
        label: how messages call the node.
        inputs: names of values, empty for omitted ones.
        outputs: names of values.
        used: the outputs that are read.
        attributes: numbers, tuples, strings, tensors and dtypes by name.
        branches: graphs by the name of the attribute that holds them.
    """

    operator: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    used: Collection[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    branches: Mapping[str, Graph] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can run.

    Attributes:
        constants: the tensors of the file by name.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class NodeError(ValueError):
    """A node that cannot be computed, and why."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"node {node.label!r} ({node.operator}): {reason}")
