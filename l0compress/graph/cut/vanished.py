"""Take what has vanished out of a copied graph: nothing is left of empty nodes, and of sums over nothing their bias.

requires: a graph whose weights are cut, and what :mod:`l0compress.graph.groups.vanish` says of its nodes.
ensures:  no node of the graph has an empty dimension. A constant is held in the smallest shape that broadcasts to what
          it stands for, and is expanded where an operator needs it whole. Parameters keep their names, so that a
          constant trains on as the bias that it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from l0compress.errors import NOTHING_CHANGED, SurgeryError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.vanish import (
    Vanished,
    added_to,
    carries_tensor,
    input_sizes,
    leaves_bias,
    spreads,
    writes_to_constant,
)
from l0compress.graph.nodes.mutation import functional_of
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.graph.operators.cut import Cut, Kept
from l0compress.graph.operators.record import operator_of

aten = torch.ops.aten


def remove_vanished_(
    network: GraphNetwork, source: CapturedGraph, fate: Vanished, kept: dict[str, tuple[Kept, ...]]
) -> None:
    """Rewrite ``network``, a copy of ``source`` with cut weights, without what has vanished."""
    if fate.live is None:
        return
    surgeon = _Surgeon(network, source, fate, kept)
    nodes = [node for node in source.nodes() if node.op in ("call_function", "output")]
    for node in nodes:
        if node.name in fate.live:
            surgeon.visit_(node)
    for node in reversed(nodes):
        # Dead code elimination would keep what draws random numbers or works in place.
        if node.name not in fate.live:
            network.graph.erase_node(surgeon.copies[node.name])


class _Surgeon:
    def __init__(
        self, network: GraphNetwork, source: CapturedGraph, fate: Vanished, kept: dict[str, tuple[Kept, ...]]
    ) -> None:
        self.network, self.source, self.fate, self.kept = network, source, fate, kept
        self.copies = {node.name: node for node in network.graph.nodes}

    def visit_(self, node: fx.Node) -> None:
        copy, fate = self.copies[node.name], self.fate
        touched = [s for s in node.all_input_nodes if s.name in fate.hollow or s.name in fate.constants]
        if not touched:
            return
        if node.op == "call_function" and not carries_tensor(node):
            self._replace_(copy, self._size(copy, node.meta["val"]))
        elif node.name in fate.passed:
            self._replace_(copy, self.copies[self._survivor(node.name)])
        elif node.name not in fate.constants:
            self._beside_constants_(node, copy)
        elif any(source.name in fate.hollow for source in touched) and leaves_bias(node, fate.hollow):
            self._become_bias_(node, copy)
        else:
            self._stay_constant_(node, copy)

    def _survivor(self, name: str) -> str:
        """What a chain of sums with zeros is equal to; the links of it are erased one after the other."""
        while name in self.fate.passed:
            name = self.fate.passed[name]
        return name

    def _replace_(self, copy: fx.Node, by: Any) -> None:
        if isinstance(by, fx.Node):
            copy.replace_all_uses_with(by)
        else:
            for user in list(copy.users):
                user.args = map_arg(user.args, lambda arg: by if arg is copy else arg)
                user.kwargs = map_arg(user.kwargs, lambda arg: by if arg is copy else arg)
        self.network.graph.erase_node(copy)

    def _become_bias_(self, node: fx.Node, copy: fx.Node) -> None:
        """What is left of a sum over nothing."""
        rank, bias, empty_sum = node.meta["val"].dim(), added_to(node), operator_of(node).empty_sum
        if bias is None or empty_sum is None:
            self._become_(copy, aten.clone.default, self._zero(copy, rank, node.meta["val"].dtype))
            return
        dim = empty_sum.dim(node)
        self._become_(copy, aten.view.default, self.copies[bias.name], [-1 if d == dim else 1 for d in range(rank)])

    def _zero(self, before: fx.Node, rank: int, dtype: torch.dtype) -> fx.Node:
        """A zero on the device of the model's input, which costs no buffer."""
        source = next(node for node in self.network.graph.nodes if node.op == "placeholder" and carries_tensor(node))
        with self.network.graph.inserting_before(before):
            return self.network.graph.call_function(
                aten.new_zeros.default, (source, [1] * rank), {"dtype": dtype, "pin_memory": False}
            )

    def _stay_constant_(self, node: fx.Node, copy: fx.Node) -> None:
        known = operator_of(node).of_constant
        if known is not None and known.rewrite is not None:
            known.rewrite(Cut(self.network, copy, self.kept[node.name], {}, node, self.source))
        elif writes_to_constant(node, self.fate.constants):
            self._become_functional_(node, copy)

    def _beside_constants_(self, node: fx.Node, copy: fx.Node) -> None:
        """A node that goes on: empty parts of what it joins are left out, constants are expanded where it needs it."""
        if operator_of(node).joins:
            parts: Any = zip(_parts(copy), _parts(node), strict=True)
            copy.update_arg(0, [part for part, dense in parts if not self._hollow(dense)])
        if spreads(node, self.fate.constants):
            if writes_to_constant(node, self.fate.constants):
                self._become_functional_(node, copy)
            return
        for source in node.all_input_nodes:
            if source.name in self.fate.constants:
                copy.replace_input_with(self.copies[source.name], self._expanded(source, copy))
        if operator_of(node).joins and len(_parts(copy)) == 1:
            self._become_(copy, aten.alias.default, *_parts(copy))

    @staticmethod
    def _become_functional_(node: fx.Node, copy: fx.Node) -> None:
        target = functional_of(node)
        if target is None:
            raise SurgeryError(
                f"{node.name!r} writes in place into a value that is now constant, and PyTorch has no out-of-place "
                "form of it.",
                fix="Please report this with the model; until then freeze the layer.",
                assurance=NOTHING_CHANGED,
            )
        copy.target = target

    def _hollow(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node.name in self.fate.hollow

    def _expanded(self, source: fx.Node, before: fx.Node) -> fx.Node:
        sizes = source.meta["val"].shape
        small = self.kept[source.name][0].shape
        wanted = [
            n if is_concrete_int(size) else self._size(before, size) for n, size in zip(small, sizes, strict=True)
        ]
        with self.network.graph.inserting_before(before):
            return self.network.graph.call_function(aten.expand.default, (self.copies[source.name], wanted))

    def _size(self, before: fx.Node, size: Any) -> Any:
        """A size as a number or as a node that computes it from the sizes of the model's inputs."""
        if not isinstance(size, torch.SymInt) or is_concrete_int(size):
            return int(size)
        graph = self.network.graph
        tracer = GraphAppendingTracer(graph)
        with graph.inserting_before(before):
            known = {symbol: fx.Proxy(self._input_size(symbol), tracer) for symbol in size.node.expr.free_symbols}
            return sympy_interp(PythonReferenceAnalysis, known, size.node.expr).node

    def _input_size(self, symbol: Any) -> fx.Node:
        found = input_sizes(self.network.graph).get(symbol)
        if found is not None:
            return self.network.graph.call_function(aten.sym_size.int, found)
        raise SurgeryError(
            f"no input of the model has the size {symbol}.",
            fix="Please report this with the model; until then freeze the layer.",
            assurance=NOTHING_CHANGED,
        )

    @staticmethod
    def _become_(copy: fx.Node, target: Any, *args: Any) -> None:
        copy.target, copy.args, copy.kwargs = target, args, {}


def _parts(join: fx.Node) -> list[Any]:
    parts: Any = join.args[0]
    return list(parts)
