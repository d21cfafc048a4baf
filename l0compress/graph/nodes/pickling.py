"""Graphs in pickles: what ``copy``, ``pickle``, ``torch.save`` and other processes need of a captured graph.

``torch.fx`` pickles the generated code alone and traces it again, which loses the names of nodes and cannot be done at
all for the graphs of ``torch.export``. Here the nodes themselves are written down. Fake tensors are not: the sizes of
the inputs are, and what follows from them is worked out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.graph import CodeGen, _PyTreeCodeGen
from torch.fx.node import map_aggregate

# Of a node's notes, those that are plain values: the line of the user's source, and what capture wrote down.
_PLAIN = (str, int, float, bool)


@dataclass(frozen=True)
class _Ref:
    """A node among the arguments of another."""

    name: str


@dataclass(frozen=True)
class _Operator:
    """An operator of a library that was registered with torch, by its name."""

    name: str
    overload: str | None

    def found(self) -> Any:
        if self.overload is None:
            return getattr(torch.ops.higher_order, self.name)
        namespace, _, name = self.name.partition("::")
        return getattr(getattr(getattr(torch.ops, namespace), name), self.overload)


@dataclass(frozen=True)
class NodeRecipe:
    """One node, in values that can be pickled."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class GraphRecipe:
    """A graph without its tensors. ``pytree`` says how inputs and outputs are packed; None: they are not."""

    nodes: tuple[NodeRecipe, ...]
    pytree: Any


def recipe_of(graph: fx.Graph) -> GraphRecipe:
    """Write a graph down.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> _ = graph.output(graph.call_function(torch.ops.aten.relu.default, (x,)))
    >>> [node.name for node in graph_from(recipe_of(graph)).nodes]
    ['x', 'relu_default', 'output']
    """
    nodes = tuple(
        NodeRecipe(
            node.op,
            node.name,
            _named(node.target),
            map_aggregate(node.args, _ref_to),
            map_aggregate(node.kwargs, _ref_to),
            {key: value for key, value in node.meta.items() if isinstance(value, _PLAIN)},
        )
        for node in graph.nodes
    )
    codegen = graph._codegen
    return GraphRecipe(nodes, codegen.pytree_info if isinstance(codegen, _PyTreeCodeGen) else None)


def graph_from(recipe: GraphRecipe) -> fx.Graph:
    """The graph that :func:`recipe_of` wrote down, under the same node names."""
    graph = fx.Graph()
    graph.set_codegen(CodeGen() if recipe.pytree is None else _PyTreeCodeGen(recipe.pytree))
    made: dict[str, fx.Node] = {}

    def node_of(leaf: Any) -> Any:
        return made[leaf.name] if isinstance(leaf, _Ref) else leaf

    for node in recipe.nodes:
        target = node.target.found() if isinstance(node.target, _Operator) else node.target
        args, kwargs = map_aggregate(node.args, node_of), map_aggregate(node.kwargs, node_of)
        new = graph.create_node(node.op, target, args, kwargs, node.name)
        # The graph's own numbering may differ; plans speak of nodes by the names that they had.
        new.name = node.name
        new.meta.update(node.notes)
        made[node.name] = new
    return graph


def _named(target: Any) -> Any:
    if isinstance(target, torch._ops.OpOverload):
        return _Operator(target._schema.name, target._overloadname)
    return _Operator(target.name(), None) if isinstance(target, torch._ops.HigherOrderOperator) else target


def _ref_to(leaf: Any) -> Any:
    return _Ref(leaf.name) if isinstance(leaf, fx.Node) else leaf


@dataclass(frozen=True)
class InputRecipe:
    """One input tensor: sizes are numbers, or expressions (of sympy) in the symbols of free sizes."""

    shape: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device


def inputs_of(graph: fx.Graph) -> tuple[tuple[Any, ...], dict[Any, int]]:
    """What flows into a graph, and for each symbol of a free size the number that it has in the example."""
    found: list[Any] = []
    symbols: dict[Any, int] = {}

    def plain(size: Any) -> Any:
        if not isinstance(size, torch.SymInt):
            return int(size)
        environment, expression = size.node.shape_env, size.node.expr
        for symbol in expression.free_symbols:
            symbols[symbol] = int(environment.create_symintnode(symbol, hint=None).node.hint)
        return expression

    for node in graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            packed = isinstance(value, Tensor)
            found.append(InputRecipe(tuple(map(plain, value.shape)), value.dtype, value.device) if packed else value)
    return tuple(found), symbols


def put_inputs_(graph: fx.Graph, inputs: tuple[Any, ...], symbols: Mapping[Any, int]) -> None:
    """Give the inputs of a graph fake tensors again, with free sizes where :func:`inputs_of` found them."""
    environment = ShapeEnv()
    new = {
        symbol: environment.create_symbol(
            hint, source=ConstantSource(str(symbol)), dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None
        )
        for symbol, hint in symbols.items()
    }
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)

    def size_of(size: Any) -> Any:
        if isinstance(size, int):
            return size
        hint = int(size.xreplace(dict(symbols)))
        return environment.create_symintnode(size.xreplace(new), hint=hint)

    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, value in zip(placeholders, inputs, strict=True):
        if not isinstance(value, InputRecipe):
            node.meta["val"] = value
            continue
        with mode:
            node.meta["val"] = torch.empty(tuple(map(size_of, value.shape)), dtype=value.dtype, device=value.device)
