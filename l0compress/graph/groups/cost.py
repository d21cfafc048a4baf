"""What a model costs: parameters, multiply-accumulates per sample, bytes of weights, in float and in an int8 file.

:func:`cost` reads them off a graph's shapes. :class:`~l0compress.graph.groups.cost_model.CostModel` predicts them for
any plan; the two agree exactly on every shrunk graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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


class _WhenAsked:
    """A field that holds a number, or the function that counts it when it is read first."""

    _KEPT = "_int8_bytes"

    def __get__(self, instance: object | None, owner: type) -> int:
        """Return the number; of the class, the default of the field."""
        if instance is None:
            return 0
        found: int | Callable[[], int] = vars(instance)[self._KEPT]
        if callable(found):
            found = vars(instance)[self._KEPT] = found()
        return found

    def __set__(self, instance: object, value: int | Callable[[], int]) -> None:
        vars(instance)[self._KEPT] = value


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        params: elements of distinct parameters (tied ones count once).
        macs: multiply-accumulates of linear, convolution, recurrent, matrix product and attention nodes, a sample.
        bytes: those of parameters and floating-point buffers.
        int8_bytes: bytes of the same in the int8 file, see :mod:`l0compress.graph.groups.int8`; 0 where nobody counted
            them. Few ask for them, and counting takes as long as everything else, so it is done when they are first
            read. They say what another program makes of the model, so equality does not compare them.
    """

    params: int
    macs: int
    bytes: int
    int8_bytes: _WhenAsked = field(default=_WhenAsked(), repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Cost], tuple[int, int, int, int]]:
        """Copies and files get the number, not the graph that it is counted on."""
        return Cost, (self.params, self.macs, self.bytes, self.int8_bytes)

    def get(self, unit: str) -> int:
        """The cost in one unit: ``params``, ``macs``, ``bytes`` or ``int8_bytes``.

        Examples:
            >>> Cost(params=10, macs=20, bytes=40).get("bytes")
            40
        """
        if unit not in UNITS:
            raise KeyError(unit)
        return getattr(self, unit)

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
    tensors = _tensors(graph)
    params = sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, nn.Parameter))
    size_bytes = sum(
        tensor.numel() * tensor.element_size() for tensor in tensors.values() if tensor.is_floating_point()
    )
    macs = sum(node_macs(node) for node in graph.nodes())
    return Cost(params, round(macs / graph.batch_size), size_bytes, partial(_in_int8, graph))


def _tensors(graph: CapturedGraph) -> dict[int, Tensor]:
    """The distinct parameters and buffers that the graph reads."""
    names = {str(node.target) for node in graph.nodes() if node.op == "get_attr"}
    read = (attribute(graph.graph_module, name) for name in names)
    return {id(tensor): tensor for tensor in read if isinstance(tensor, Tensor)}


def _in_int8(graph: CapturedGraph) -> int:
    tensors = _tensors(graph)
    return round(sum(size_of(terms, tuple(tensors[key].shape)) for key, terms in int8_terms(graph).items()))


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
