"""Flatten what ``torch.export`` leaves nested: regions become their nodes, and guards go.

requires: a graph module straight from an exported program.
ensures:  one flat graph of operators, without shape guards, dtype assertions and ``wrap_with_*`` regions.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from l0compress.graph.nodes.network import attribute, op_name

_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size")


def drop_checks_(module: fx.GraphModule) -> None:
    """Shape guards and dtype assertions speak of the dense model; on a smaller one they would only be wrong."""
    for node in reversed(list(module.graph.nodes)):
        guard = node.op == "call_module" and str(node.target).startswith("_guards_fn")
        if (guard or op_name(node) in _ASSERTIONS) and not node.users:
            module.graph.erase_node(node)


def inline_regions_(module: fx.GraphModule) -> None:
    """Replace ``wrap_with_set_grad_enabled``, ``wrap_with_autocast`` and their kind by the nodes of their bodies."""
    pending = True
    while pending:
        pending = False
        for node in list(module.graph.nodes):
            if node.op == "call_function" and "wrap_with" in str(node.target):
                _inline_(module, node)
                pending = True


def _inline_(module: fx.GraphModule, node: fx.Node) -> None:
    start, body_node = next(
        (i, arg)
        for i, arg in enumerate(node.args)
        if isinstance(arg, fx.Node)
        and arg.op == "get_attr"
        and isinstance(attribute(module, str(arg.target)), fx.GraphModule)
    )
    body: fx.GraphModule = attribute(module, str(body_node.target))
    inputs = iter(node.args[start + 1 :])
    inside: dict[fx.Node, Any] = {}
    result: Any = None
    with module.graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                inside[inner] = next(inputs)
            elif inner.op == "output":
                result = map_arg(inner.args[0], lambda arg: inside[arg])
            else:
                if inner.op == "get_attr":
                    name = f"{body_node.target}_{inner.target}".replace(".", "_")
                    setattr(module, name, attribute(body, str(inner.target)))
                    inside[inner] = module.graph.get_attr(name)
                    inside[inner].meta = dict(inner.meta)
                else:
                    inside[inner] = module.graph.node_copy(inner, lambda arg: inside[arg])
    if isinstance(result, (tuple, list)):
        for user in list(node.users):
            if user.target is operator.getitem:
                position: Any = user.args[1]
                user.replace_all_uses_with(result[position])
                module.graph.erase_node(user)
    else:
        node.replace_all_uses_with(result)
    module.graph.erase_node(node)
