"""Writes through views, as values: ``buf[:, 2:6] = x`` becomes a new tensor, so that channels can be told apart in it.

requires: a flat graph with shapes on every node.
ensures:  where a tensor that the graph makes itself was written through one view and seen through another, it is now
          a chain of values. Families of views that cannot be told for sure (``reshape`` may copy or not) stay as they
          are, and the label pass freezes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.fx.node import map_arg

from l0compress.graph.nodes.emit import Emitter
from l0compress.graph.nodes.mutation import base_of, exposed_by, functional_of, shares, writes
from l0compress.graph.nodes.network import op_name

aten = torch.ops.aten

# Views for certain, whatever the strides; only these may be taken again from a new value.
_VIEWS = frozenset(
    {"slice", "select", "transpose", "permute", "t", "unsqueeze", "alias", "detach", "view", "expand", "diagonal"}
)


def functionalise_(module: fx.GraphModule) -> None:
    """Rewrite every family of views in which a write through one would be seen through another."""
    done: set[fx.Node] = set()
    for node in list(module.graph.nodes):
        if not exposed_by(node):
            continue
        root = base_of(node.args[0])
        if root not in done and root.op == "call_function":
            done.add(root)
            family = _Family(module.graph, root)
            if _replaceable(family):
                _Rewriting(family).run_()


@dataclass(frozen=True, eq=False)
class _Family:
    """A tensor and all nodes that may be views of it; ``parent`` says of what, in the graph as found."""

    graph: fx.Graph
    root: fx.Node
    parent: dict[fx.Node, fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        parent: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if (
                shares(node)
                and node.all_input_nodes
                and (node.all_input_nodes[0] in parent or node.args[0] is self.root)
            ):
                parent[node] = node.all_input_nodes[0]
        object.__setattr__(self, "parent", parent)

    def __contains__(self, node: object) -> bool:
        return node is self.root or node in self.parent

    def chain(self, node: fx.Node) -> list[fx.Node]:
        """The views from ``node`` up to the root, without the in-place operators between them."""
        found = []
        while node is not self.root:
            if not writes(node):
                found.append(node)
            node = self.parent[node]
        return found


def _replaceable(family: _Family) -> bool:
    """Whether every write can be a value, and every view that is looked at after a later write taken again."""
    version = 0
    born = {family.root: 0}
    for node in family.graph.nodes:
        if node not in born and node in family:
            born[node] = version
        for source in node.all_input_nodes if node is not family.root else ():
            stale = source in family and born[source] < version
            if stale and not all(op_name(view) in _VIEWS for view in family.chain(source)):
                return False
        if writes(node) and any(source in family for source in node.all_input_nodes):
            if not _is_value_op(node, family):
                return False
            version += 1
            born[node] = version
    return True


def _is_value_op(node: fx.Node, family: _Family) -> bool:
    target = node.args[0]
    schema: Any = getattr(node.target, "_schema", None)
    written = [i for i, argument in enumerate(schema.arguments) if argument.alias_info and argument.alias_info.is_write]
    if written != [0] or not isinstance(target, fx.Node) or target not in family or _functional(node) is None:
        return False
    return all(op_name(view) in _INVERSES for view in family.chain(target))


def _functional(node: fx.Node) -> Callable[..., Any] | None:
    """The operator that computes what an in-place one writes."""
    name = op_name(node)
    if name in ("copy", "fill", "zero"):
        return {"copy": _copied, "fill": _filled, "zero": lambda emit, x: emit(aten.zeros_like.default, x)}[name]
    target = functional_of(node)
    if target is None:
        return None
    return lambda emit, x, *rest, **kwargs: _as_type(emit, emit(target, x, *rest, **kwargs), x)


def _as_type(emit: Callable[..., fx.Node], value: fx.Node, like: fx.Node) -> fx.Node:
    dtype = like.meta["val"].dtype
    return value if value.meta["val"].dtype is dtype else emit(aten.to.dtype, value, dtype)


def _copied(emit: Callable[..., fx.Node], x: fx.Node, source: fx.Node, *_: Any) -> fx.Node:
    value = _as_type(emit, source, x)
    # As text, for comparing a free size with a number would tie it to the example's.
    same = str(tuple(value.meta["val"].shape)) == str(tuple(x.meta["val"].shape))
    return value if same else emit(aten.expand_as.default, value, x)


def _filled(emit: Callable[..., fx.Node], x: fx.Node, value: Any) -> fx.Node:
    return _copied(emit, x, value) if isinstance(value, fx.Node) else emit(aten.full_like.default, x, value)


def _unsliced(emit: Callable[..., fx.Node], view: fx.Node, whole: fx.Node, part: fx.Node) -> fx.Node:
    dim, start, end, step = (*view.args[1:], None, None, None, None)[:4]
    if start in (None, 0) and end in (None, sys.maxsize) and step in (None, 1):
        return part
    return emit(aten.slice_scatter.default, whole, part, dim or 0, start, end, 1 if step is None else step)


def _unviewed(emit: Callable[..., fx.Node], _: fx.Node, whole: fx.Node, part: fx.Node) -> fx.Node:
    sizes = [int(size) if is_concrete_int(size) else -1 for size in whole.meta["val"].shape]
    return emit(aten.reshape.default, part, sizes)


def _unpermuted(emit: Callable[..., fx.Node], view: fx.Node, _: fx.Node, part: fx.Node) -> fx.Node:
    order: Any = view.args[1]
    return emit(aten.permute.default, part, [[d % len(order) for d in order].index(i) for i in range(len(order))])


# How a written view goes back into what it is a view of.
_INVERSES: dict[str, Callable[..., fx.Node]] = {
    "slice": _unsliced,
    "select": lambda emit, view, whole, part: emit(aten.select_scatter.default, whole, part, *view.args[1:]),
    "transpose": lambda emit, view, _, part: emit(aten.transpose.int, part, *view.args[1:]),
    "t": lambda emit, _, __, part: emit(aten.t.default, part),
    "permute": _unpermuted,
    "unsqueeze": lambda emit, view, _, part: emit(aten.squeeze.dim, part, view.args[1]),
    "view": _unviewed,
    "alias": lambda _, __, ___, part: part,
    "detach": lambda _, __, ___, part: part,
}


class _Rewriting:
    """One pass over the graph that replaces every use of a family by what it holds at that point."""

    def __init__(self, family: _Family) -> None:
        self.family = family
        self.version = 0
        self.held: dict[tuple[fx.Node, int], fx.Node] = {(family.root, 0): family.root}
        self.emit = Emitter(family.graph, family.root)

    def run_(self) -> None:
        nodes = list(self.family.graph.nodes)
        for node in nodes[nodes.index(self.family.root) + 1 :]:
            self.emit.at = node
            if writes(node) and node in self.family:
                self._write_(node)
                continue
            node.args = map_arg(node.args, self._current)
            node.kwargs = map_arg(node.kwargs, self._current)
            if node in self.family:
                self.held[node, self.version] = node
        for node in reversed(nodes):
            if writes(node) and node in self.family:
                self.family.graph.erase_node(node)

    def _write_(self, node: fx.Node) -> None:
        function = _functional(node)
        target = self._view_of(node)
        args = [map_arg(argument, self._current) for argument in node.args[1:]]
        kwargs = {key: map_arg(argument, self._current) for key, argument in node.kwargs.items()}
        held = self._current(target)
        value = function(self.emit, held, *args, **kwargs) if function is not None else held
        pieces = [(target, value)]
        for view in self.family.chain(target):
            whole = self._view_of(view)
            value = _INVERSES[op_name(view)](self.emit, view, self._current(whole), value)
            pieces.append((whole, value))
        self.version += 1
        for view, piece in pieces:
            self.held[view, self.version] = piece

    def _view_of(self, node: fx.Node) -> fx.Node:
        """What a node is a view of; in-place operators return what they are given."""
        parent = self.family.parent[node]
        while writes(parent):
            parent = self.family.parent[parent]
        return parent

    def _current(self, node: fx.Node) -> fx.Node:
        if node not in self.family:
            return node
        if writes(node) and node is not self.family.root:
            return self._current(self._view_of(node))
        key = (node, self.version)
        if key not in self.held:
            whole = self._current(self._view_of(node))
            target: Any = node.target
            self.held[key] = self.emit(target, whole, *node.args[1:], **node.kwargs)
        return self.held[key]
