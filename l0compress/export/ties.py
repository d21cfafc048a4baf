"""Sizes that the inputs of a captured graph share, stated again when the graph is traced again.

``torch.export`` gives every free size its own symbol, and finds out on the way which ones are the same. Whatever it
has computed until then refers to two sizes, and it may conclude what holds for the example alone. A captured graph
knows from the start.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import fx

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.verification.calls import free_dims


def tie_sizes_(network: GraphNetwork, graph: CapturedGraph) -> None:
    """Make a network of the graph check first that sizes are equal that are one size in the graph.

    Examples:
        >>> import l0compress as l0
        >>> bilinear = l0.capture(torch.nn.Bilinear(3, 4, 2), (torch.zeros(2, 3), torch.zeros(2, 4)))
        >>> network = bilinear.module()
        >>> tie_sizes_(network, bilinear)
        >>> network(torch.zeros(5, 3), torch.zeros(6, 4))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        RuntimeError: Expected cond to be True, but got False...
    """
    places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for leaf, dims in enumerate(free_dims(graph)):
        for dim, symbol in dims.items():
            places[symbol].append((leaf, dim))
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    if inputs:
        with network.graph.inserting_before(inputs[-1].next):
            _check_(network.graph, inputs, places.values())
        network.recompile()


def _check_(graph: fx.Graph, inputs: list[fx.Node], places: Iterable[list[tuple[int, int]]]) -> None:
    for (first, dim), *others in places:
        for other, at in others:
            sizes = [
                graph.call_function(torch.ops.aten.sym_size.int, place)
                for place in ((inputs[first], dim), (inputs[other], at))
            ]
            graph.call_function(torch._check, (graph.call_function(operator.eq, tuple(sizes)),))
