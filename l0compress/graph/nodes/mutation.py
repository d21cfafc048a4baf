"""In-place writes: which tensors share memory, and whether a write through one can be seen through another.

Surgery may turn a view into a copy, and a write must not notice. It does where the written tensor is looked at again
through another view, so what such tensors hold stays whole.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from l0compress.graph.nodes.network import op_name


def exposed_by(node: fx.Node) -> list[fx.Node]:
    """The tensors that share memory with what ``node`` writes in place, if a later node looks at it through another.

    Examples:
        >>> import torch
        >>> graph = fx.Graph()
        >>> x = graph.placeholder("x")
        >>> view = graph.call_function(torch.ops.aten.view.default, (x, [-1]))
        >>> write = graph.call_function(torch.ops.aten.relu_.default, (view,))
        >>> exposed_by(write)
        []
        >>> _ = graph.output((x,))
        >>> exposed_by(write)
        [x, view_default]
    """
    written = node.args[0] if node.args else None
    if not writes(node) or not isinstance(written, fx.Node):
        return []
    aliases = [base_of(written)]
    for alias in aliases:
        aliases.extend(
            user for user in alias.users if user < node and shares(user) and user.all_input_nodes[0] is alias
        )
    same = original(written)
    seen = any(user > node for alias in aliases if original(alias) is not same for user in alias.users)
    return aliases if seen else []


def base_of(node: fx.Node) -> fx.Node:
    """The tensor whose memory a view may be part of."""
    while shares(node):
        node = node.all_input_nodes[0]
    return node


def original(node: fx.Node) -> fx.Node:
    """In-place operators return the very tensor that they write."""
    while writes(node):
        node = node.all_input_nodes[0]
    return node


def writes(node: fx.Node) -> bool:
    """Whether an operator writes one of its operands; ``detach_`` cuts a gradient and leaves the values alone."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable and op_name(node) != "detach"


def functional_of(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operator that returns what an in-place one would have written, None where there is none."""
    overload: Any = node.target
    found = getattr(getattr(torch.ops.aten, op_name(node), None), overload._overloadname, None)
    return None if found is None or found._schema.is_mutable else found


def shares(node: fx.Node) -> bool:
    """Whether the result may be memory of the first operand: views, in-place operators and items of split lists."""
    if node.op != "call_function":
        return False
    schema = getattr(node.target, "_schema", None)
    aliasing = schema is not None and any(argument.alias_info is not None for argument in schema.arguments)
    return aliasing or node.target is operator.getitem


def written_after(node: fx.Node, writers: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether the memory of a tensor is written in place later on.

    Args:
        writers: what :func:`writers_of` finds in the node's graph.
    """
    return bool(writers) and any(base is base_of(node) and other > node for other, base in writers.items())


def unwritten_until(node: fx.Node, later: fx.Node) -> bool:
    """Whether nothing is written in place from ``node`` up to ``later``, which comes after it."""
    while node is not later:
        if writes(node):
            return False
        node = node.next
    return True


def writers_of(nodes: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """The nodes that write in place, and the tensor whose memory each writes."""
    return {node: base for node in nodes if (base := written_base(node)) is not None}


def written_base(node: fx.Node) -> fx.Node | None:
    """The tensor whose memory a node writes in place, None if it writes nothing."""
    written = node.args[0] if node.args else None
    return base_of(written) if writes(node) and isinstance(written, fx.Node) else None
