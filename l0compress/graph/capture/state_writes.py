"""Writes into buffers: a captured graph reads its state and leaves it alone.

requires: a flat graph straight from ``torch.export``, whose model returns the same at every call.
ensures:  what the graph writes into is a copy made in the same call, and writes that nothing looks at are gone.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from l0compress.graph.nodes.mutation import base_of, writers_of
from l0compress.graph.nodes.network import attribute, replace_tensor_
from l0compress.graph.nodes.sources import source_line

aten = torch.ops.aten
_LIBRARY_LAYER = "torch.nn.modules."


def written_state(module: fx.GraphModule) -> dict[str, str]:
    """Names of the buffers that the model's own code writes in place, and the lines that do."""
    return {str(base.target): source_line(node) for node, base in _own_writes(module.graph).items()}


def drop_state_writes_(module: fx.GraphModule) -> None:
    """Take the writes into the model's state out of the graph."""
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        # torch.export appends one such copy for every buffer that was bound anew, if need be into an input. What was
        # bound is in the graph already.
        if node.op == "call_function" and node.name.startswith("copy__default") and not node.users:
            graph.erase_node(node)
    for base in dict.fromkeys(_own_writes(graph).values()):
        with graph.inserting_after(base):
            copied = graph.call_function(aten.clone.default, (base,))
        copied.meta = {key: value for key, value in base.meta.items() if key == "val"}
        base.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
        _drop_unseen_(graph, copied)


def detach_state_(module: fx.GraphModule) -> None:
    """A buffer that a call in training mode wrote still hangs on the graph of that call, and could not be copied."""
    for node in module.graph.nodes:
        value = attribute(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and not value.is_leaf:
            replace_tensor_(module, str(node.target), value.detach())


def _own_writes(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Batch norm and its kind keep their statistics by themselves."""
    return {
        node: base for node, base in writers_of(graph.nodes).items() if base.op == "get_attr" and not _by_library(node)
    }


def _by_library(node: fx.Node) -> bool:
    stack = node.meta.get("nn_module_stack") or {}
    innermost = list(stack.values())[-1][1] if stack else ""
    return str(innermost).startswith(_LIBRARY_LAYER)


def _drop_unseen_(graph: fx.Graph, root: fx.Node) -> None:
    """Erase a tensor, its views and the writes into it, if nothing else looks at any of them."""
    family = [node for node in graph.nodes if node is root or _leads_to(node, root)]
    inside = set(family)
    if all(user in inside for node in family for user in node.users):
        for node in reversed(family):
            graph.erase_node(node)


def _leads_to(node: fx.Node, root: fx.Node) -> bool:
    return node.op == "call_function" and base_of(node) is root
