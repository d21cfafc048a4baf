"""What a model costs: parameters, multiply-accumulates per sample, bytes of weights, in float and in an int8 file.

:func:`cost` reads them off a graph's shapes. :class:`~l0compress.graph.groups.cost_model.CostModel` predicts them for
any plan; the two agree exactly on every shrunk graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, fx, nn

from l0compress.graph.capture import CapturedGraph, check_captured
from l0compress.graph.groups.int8 import int8_terms, size_of
from l0compress.graph.nodes.network import attribute
from l0compress.graph.operators.record import operator_of
from l0compress.graph.operators.step import sized_by_data

Unit = Literal["params", "macs", "bytes", "int8_bytes"]
UNITS: tuple[Unit, ...] = ("params", "macs", "bytes", "int8_bytes")

_Term = tuple[float, list[int], frozenset[str]]  # coefficient, lines, the nodes it is for


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        params: elements of distinct parameters (tied ones count once).
        macs: multiply-accumulates of linear, convolution, recurrent, matrix product and attention nodes, a sample.
        bytes: those of parameters and floating-point buffers.
        int8_bytes: bytes of the same in the int8 file, see :mod:`l0compress.graph.groups.int8`; 0 where nobody counted
            them. It says what another program makes of the model, so equality does not compare it.
    """

    params: int
    macs: int
    bytes: int
    int8_bytes: int = field(default=0, repr=False, compare=False)

    def get(self, unit: str) -> int:
        """The cost in one unit: ``params``, ``macs``, ``bytes`` or ``int8_bytes``.

        Examples:
            >>> Cost(params=10, macs=20, bytes=40).get("bytes")
            40
        """
        units = {"params": self.params, "macs": self.macs, "bytes": self.bytes, "int8_bytes": self.int8_bytes}
        return units[unit]

    @property
    def size_bytes(self) -> int:
        """Return :attr:`bytes`, by the name that it had before."""
        return self.bytes


def cost(graph: CapturedGraph) -> Cost:
    """Count a graph's cost from the shapes of its nodes.

    Examples:
        >>> import torch
        >>> from l0compress.graph.capture import capture
        >>> cost(capture(nn.Linear(4, 3), (torch.zeros(2, 4),)))
        Cost(params=15, macs=12, bytes=60)

    Raises:
        InputError: ``graph`` is no captured graph.
    """
    check_captured(graph, "cost")
    module = graph.graph_module
    names = {str(node.target) for node in graph.nodes() if node.op == "get_attr"}
    tensors = {id(tensor): tensor for name in names if isinstance(tensor := attribute(module, name), Tensor)}
    params = sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, nn.Parameter))
    size_bytes = sum(
        tensor.numel() * tensor.element_size() for tensor in tensors.values() if tensor.is_floating_point()
    )
    macs = sum(node_macs(node) for node in graph.nodes())
    in_int8 = sum(size_of(terms, tuple(tensors[key].shape)) for key, terms in int8_terms(graph).items())
    return Cost(params, round(macs / graph.batch_size), size_bytes, round(in_int8))


def node_macs(node: fx.Node) -> int:
    """Multiply-accumulates of one node over the whole example batch."""
    count = operator_of(node).macs
    if count is None or sized_by_data(node):  # there is no number to count where the data decide
        return 0
    return count(node)


def cost_lines(before: Cost, after: Cost) -> list[str]:
    """What a model costs before and after.

    >>> from l0compress.graph.groups.cost import Cost
    >>> cost_lines(Cost(1200, 50, 4800), Cost(300, 25, 1200))
    ['parameters: 1,200 -> 300', 'MACs: 50 -> 25', 'bytes: 4,800 -> 1,200']
    """
    rows = (("parameters", "params"), ("MACs", "macs"), ("bytes", "bytes"))
    return [f"{name}: {before.get(unit):,} -> {after.get(unit):,}" for name, unit in rows]
