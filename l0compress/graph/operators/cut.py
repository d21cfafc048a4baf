"""One node of a graph that is being cut: what a rewrite is given, and how the rewrite of an operator is applied.

An operator without a rewrite computes from the shapes of its operands alone, so a smaller operand is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.constant_index import constant_index
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.graph.nodes.shapes import Shape, concrete
from l0compress.graph.operators.record import operator_of

_AGAIN = "_again"


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays of one tensor.

    Attributes:
        dense: its shape in the dense model.
        indices: per dimension the sorted kept indices, None where it stays whole.
        ragged: what is left is no rectangle; only an index_select over its source can make the next layout.
    """

    dense: Shape
    indices: tuple[Tensor | None, ...]
    ragged: bool = False

    @property
    def shape(self) -> Shape:
        return tuple(size if keep is None else len(keep) for size, keep in zip(self.dense, self.indices, strict=True))

    @property
    def whole(self) -> bool:
        return not self.ragged and all(keep is None for keep in self.indices)

    def along(self, dim: int) -> Tensor:
        """Kept indices along ``dim``, all of them where it stays whole."""
        keep = self.indices[dim]
        return torch.arange(self.dense[dim]) if keep is None else keep


@dataclass(frozen=True, eq=False)
class Cut:
    """A node of the copy, beside what is kept of its results and of its operands.

    Attributes:
        node: the node to rewrite, in the copied graph.
        results: what is kept of each tensor that it returns.
        operands: what is kept of each tensor argument, by position (keyword tensors are not listed).
        dense: the node as it is in the dense graph.
        source: the dense graph.
    """

    network: GraphNetwork
    node: fx.Node
    results: tuple[Kept, ...]
    operands: dict[int, Kept]
    dense: fx.Node
    source: CapturedGraph

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The dense node's positional arguments with symbolic sizes as numbers."""
        return tuple(map_aggregate(self.dense.args, _number))

    def constant_index(self, argument: object, size: int) -> Tensor | None:
        """Where an index argument of the dense node points, along a dimension of ``size``."""
        found = constant_index(self.source.graph_module, argument)
        return None if found is None else found % size

    @property
    def result(self) -> Kept:
        return self.results[0]

    def argument(self, position: int, keyword: str = "", default: Any = None) -> Any:
        """An argument of the node as it stands, nodes and symbolic sizes included."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(keyword, default)

    def constant(self, tensor: Tensor, purpose: str) -> fx.Node:
        """A buffer of the small model, as a node in front of this one.

        Its name is longer than those of the cuts before, so that it never stands for another tensor in a graph that
        this one comes from.
        """
        name = f"{self.node.name}_{purpose}"
        like = [known for known in self.network._buffers if known.replace(_AGAIN, "") == name]
        if like:
            name = max(like, key=len) + _AGAIN
        self.network.register_buffer(name, tensor)
        with self.network.graph.inserting_before(self.node):
            return self.network.graph.get_attr(name)

    def emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new node in front of this one."""
        with self.network.graph.inserting_before(self.node):
            return self.network.graph.call_function(target, args, kwargs)

    def select(self, dim: int, wanted: Tensor, keep: Tensor) -> None:
        """Become an index_select of ``wanted`` dense indices from the first operand, which holds ``keep``."""
        index = self.constant(torch.searchsorted(keep, wanted), "index")
        self.become(torch.ops.aten.index_select.default, self.node.args[0], dim, index)

    def become(self, target: Any, *args: Any) -> None:
        self.node.target, self.node.args, self.node.kwargs = target, args, {}


def _number(argument: Any) -> Any:
    if isinstance(argument, fx.Node) and not isinstance(argument.meta.get("val"), Tensor):
        return concrete(argument.meta.get("val"))
    return argument


def rewrite_(cut: Cut) -> None:
    """Adapt one node of the copied graph to its smaller operands."""
    function = operator_of(cut.dense).rewrite  # an earlier rewrite may have made another operator of the copy
    if function is not None:
        function(cut)
