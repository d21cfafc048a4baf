"""Index tensors whose values are known before the model runs: literal indices, index buffers, ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from l0compress.graph.nodes.mutation import shares, writes
from l0compress.graph.nodes.network import attribute


def constant_index(module: nn.Module, node: object) -> Tensor | None:
    """int64: the values of an integer tensor that hangs on nothing but buffers and literals; None where there is none.

    Examples:
        >>> graph = fx.Graph()
        >>> arange = graph.call_function(torch.ops.aten.arange.default, (3,))
        >>> constant_index(nn.Module(), graph.call_function(torch.ops.aten.flip.default, (arange, [0])))
        tensor([2, 1, 0])
        >>> constant_index(nn.Module(), graph.placeholder("x")) is None
        True
    """
    if not isinstance(node, fx.Node):
        return None
    value = _evaluated(module, node)
    return value.long() if value is not None and value.dtype in (torch.int32, torch.int64) else None


def _evaluated(module: nn.Module, node: fx.Node) -> Tensor | None:
    if is_written(node):
        return None
    if node.op == "get_attr":
        found = attribute(module, str(node.target))
        return found if isinstance(found, Tensor) and not found.is_floating_point() else None
    target: Any = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return None
    if torch.Tag.nondeterministic_seeded in target.tags or writes(node):
        return None
    operands: dict[fx.Node, Tensor] = {}
    for source in node.all_input_nodes:
        value = _evaluated(module, source)
        if value is None:
            return None
        operands[source] = value
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: operands[source])
    result = target(*args, **{key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")})
    return result if isinstance(result, Tensor) and not result.is_floating_point() else None


def is_written(node: fx.Node) -> bool:
    """Whether an in-place operator writes a tensor, be it through a view."""
    return any((writes(user) and user.args[0] is node) or (shares(user) and is_written(user)) for user in node.users)
