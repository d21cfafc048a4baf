"""The network of a graph in the form that the converter to ONNX gets: flat, and rewritten where it would stumble."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from l0compress.export.norms import split_norms_
from l0compress.export.ranges import simplify_known_
from l0compress.export.ties import tie_sizes_
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import GraphNetwork, op_name
from l0compress.verification.calls import named_leaves

# What only moves data, and what also folds dimensions.
_MOVES = frozenset(("transpose", "permute", "contiguous", "clone", "to", "unflatten"))
_VIEWS = frozenset(("view", "reshape", "_unsafe_view"))


class FlatNetwork(nn.Module):
    """The network of a graph with its tensor inputs and outputs as flat tuples, as ONNX knows them.

    Inputs that are not tensors are fixed to the example's values; constants among the outputs are left out.
    An output that is an input, or is returned twice, becomes a value of its own.
    """

    def __init__(self, graph: CapturedGraph) -> None:
        super().__init__()
        self.network = graph.module()
        tie_sizes_(self.network, graph)
        simplify_known_(self.network)
        _lay_out_attention_(self.network)
        split_norms_(self.network)
        self._leaves, self._spec = pytree.tree_flatten((graph.example_args, graph.example_kwargs))

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        outputs = named_leaves(self.network(*args, **kwargs))
        seen: set[int] = {id(tensor) for tensor in tensors}
        return tuple(_distinct(value, seen) for value in outputs.values() if isinstance(value, Tensor))


def _lay_out_attention_(network: GraphNetwork) -> None:
    """Fix the memory layout after attention: decomposing it for ONNX leaves one that a view may not fit."""
    for node in list(network.graph.nodes):
        if op_name(node) == "scaled_dot_product_attention" and len(node.args) == 3 and "attn_mask" not in node.kwargs:
            _fold_windows_(network.graph, node)
        elif op_name(node) in _VIEWS and _follows_attention(node.args[0], _MOVES | _reshapes_before(node)):
            with network.graph.inserting_before(node):
                copy = network.graph.call_function(
                    torch.ops.aten.clone.default, (node.args[0],), {"memory_format": torch.contiguous_format}
                )
            node.replace_input_with(node.args[0], copy)
    network.recompile()


def _reshapes_before(node: fx.Node) -> frozenset[str]:
    """Views that may lie between attention and ``node``: a reshape copies by itself if it must, a view does not."""
    return _VIEWS if op_name(node) == "view" else frozenset()


def _fold_windows_(graph: fx.Graph, attention: fx.Node) -> None:
    """Merge a fifth dimension (windows, blocks) and the batch into one: ONNX's attention takes four."""
    sources = [source for source in attention.args if isinstance(source, fx.Node)]
    leading = {str(source.meta["val"].shape[:-3]) for source in sources}
    if len(leading) != 1 or sources[0].meta["val"].dim() != 5:
        return
    aten = torch.ops.aten
    with graph.inserting_before(attention):
        folded = tuple(graph.call_function(aten.flatten.using_ints, (source, 0, 1)) for source in sources)
        sizes = [graph.call_function(aten.sym_size.int, (sources[0], dim)) for dim in (0, 1)]
    with graph.inserting_after(attention):
        unfolded = graph.call_function(aten.unflatten.int, (attention, 0, sizes))
    attention.replace_all_uses_with(unfolded, delete_user_cb=lambda user: user is not unfolded)
    attention.args = folded


def _follows_attention(node: Any, through: frozenset[str]) -> bool:
    while isinstance(node, fx.Node) and op_name(node) in through:
        node = node.args[0]
    return isinstance(node, fx.Node) and op_name(node) == "scaled_dot_product_attention"


def _distinct(value: Any, seen: set[int]) -> Any:
    if id(value) in seen and isinstance(value, Tensor):
        return value.clone()
    seen.add(id(value))
    return value
