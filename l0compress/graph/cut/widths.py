"""How wide each layer is, before a cut and after it: what a drawing of the network shows.

requires: two graphs of one model, which name their parameters alike.
ensures:  one row for each weight that produces channels, in the order in which the graph computes with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import op_name

_FIRST, _SECOND, _LAST = 0, 1, -1
_PRODUCTS = ("mm", "addmm", "matmul", "bmm", "baddbmm")
_RANK = 2


@dataclass(frozen=True)
class LayerWidth:
    """One layer, dense and small.

    Attributes:
        name: of its weight.
        dim: the dimension of the weight along which its outputs lie.
        dense: the shape of the weight.
        small: its shape after the cut; None where the layer is gone.
        nonzero: elements of the small weight that are not zero.
    """

    name: str
    dim: int
    dense: tuple[int, ...]
    small: tuple[int, ...] | None
    nonzero: int = 0

    @property
    def before(self) -> int:
        """Outputs of the dense layer."""
        return self.dense[self.dim]

    @property
    def after(self) -> int:
        """Outputs of the small layer; 0 where it is gone."""
        return 0 if self.small is None else self.small[self.dim]


def layer_widths(dense: CapturedGraph, small: CapturedGraph) -> tuple[LayerWidth, ...]:
    """Return the width of every layer of ``dense`` and what is left of it in ``small``.

    Example:
        >>> import torch, l0compress as l0
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = l0.capture(net, (torch.zeros(2, 4),))
        >>> plan = l0.KeepPlan.random(l0.find_groups(graph), density=0.25)
        >>> [(row.name, row.before, row.after) for row in layer_widths(graph, l0.shrink(graph, plan))]
        [('0.weight', 8, 2), ('2.weight', 2, 2)]
    """
    whole, cut = dense.state(), small.state()
    rows: dict[str, LayerWidth] = {}
    for node in _in_order_of_use(dense.nodes()):
        name = str(node.target)
        if name not in whole or whole[name].dim() < _RANK or name in rows:
            continue
        shape, left = tuple(whole[name].shape), cut.get(name)
        dim = _output_dim(node) % len(shape)
        if left is None:
            rows[name] = LayerWidth(name, dim, shape, None)
        else:
            rows[name] = LayerWidth(name, dim, shape, tuple(left.shape), int(left.count_nonzero()))
    return tuple(rows.values())


def _in_order_of_use(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes that fetch weights, by the first node that computes with each: a capture fetches all at its start."""
    listed = list(nodes)
    place = {node: number for number, node in enumerate(listed)}
    weights = [node for node in listed if node.op == "get_attr" and node.users]
    return sorted(weights, key=lambda node: min(place[user] for user in node.users))


def _output_dim(weight: fx.Node) -> int:
    """Most operators take weights as (outputs, inputs, ...); a product and a lookup end with the outputs."""
    for user in weight.users:
        name = op_name(user)
        if name == "embedding" or (name in _PRODUCTS and user.args[-1] is weight):
            return _LAST
        if name.startswith("conv_transpose"):
            return _SECOND
    return _FIRST
