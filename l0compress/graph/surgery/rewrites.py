"""One function an operator whose arguments name sizes, positions or counts of channels.

An operator that is missing here computes from the shapes of its operands alone, so a smaller operand is enough.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.network import GraphNetwork, attribute, op_name
from l0compress.graph.surgery.keeps import Kept

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Cut:
    """A node of the copy, beside what is kept of its results and of its operands.

    Attributes:
        node: the node to rewrite, in the copied graph.
        results: what is kept of each tensor that it returns.
        operands: what is kept of each tensor argument, by position (keyword tensors are not listed).
        arguments: the dense node's positional arguments with symbolic sizes as numbers.
    """

    network: GraphNetwork
    node: fx.Node
    results: tuple[Kept, ...]
    operands: dict[int, Kept]
    arguments: tuple[Any, ...]

    @property
    def result(self) -> Kept:
        return self.results[0]

    def argument(self, position: int) -> Any:
        """A positional argument of the node as it stands, nodes and symbolic sizes included."""
        return self.node.args[position]

    def constant(self, tensor: Tensor, purpose: str) -> fx.Node:
        """A buffer of the small model, as a node in front of this one."""
        name = f"{self.node.name}_{purpose}"
        while name in self.network._buffers:
            name += "_again"
        self.network.register_buffer(name, tensor)
        with self.network.graph.inserting_before(self.node):
            return self.network.graph.get_attr(name)

    def become(self, target: Any, *args: Any) -> None:
        self.node.target, self.node.args, self.node.kwargs = target, args, {}


_REWRITES: dict[str, Callable[[Cut], None]] = {}


def rewrites(*names: str) -> Callable[[Callable[[Cut], None]], Callable[[Cut], None]]:
    """Register a rewrite for operators by name, without namespace and overload."""

    def register(function: Callable[[Cut], None]) -> Callable[[Cut], None]:
        for name in names:
            _REWRITES[name] = function
        return function

    return register


def rewrite_(cut: Cut) -> None:
    """Adapt one node of the copied graph to its smaller operands."""
    function = _REWRITES.get(op_name(cut.node))
    if function is not None:
        function(cut)


def _sizes(cut: Cut, sizes: list[Any], first: int = 0) -> list[Any]:
    """Literal and symbolic sizes of a result whose dimensions, from ``first`` on, have been cut."""
    kept, free = list(sizes), -1 not in sizes
    for dim, size in enumerate(sizes):
        dense, small = cut.result.dense[first + dim], cut.result.shape[first + dim]
        if small == dense or (isinstance(size, int) and size == -1):
            continue
        if isinstance(size, int):
            kept[dim] = small
        elif free:
            kept[dim], free = -1, False
        else:  # a batch with channels folded in: it scales with what is kept of the channels
            with cut.network.graph.inserting_before(cut.node):
                scaled = cut.network.graph.call_function(operator.mul, (size, small))
                kept[dim] = cut.network.graph.call_function(operator.floordiv, (scaled, dense))
    return kept


@rewrites("view", "reshape", "_unsafe_view")
def reshape(cut: Cut) -> None:
    """A cut tensor may no longer be viewable without a copy, so a view becomes a reshape."""
    cut.become(aten.reshape.default, cut.node.args[0], _sizes(cut, list(cut.argument(1))))


@rewrites("view_as")
def view_as(cut: Cut) -> None:
    cut.become(aten.reshape_as.default, *cut.node.args)


@rewrites("squeeze")
def squeeze(cut: Cut) -> None:
    """A dimension that the plan leaves one channel of is no dimension to drop."""
    if len(cut.arguments) == 1:
        dims = [dim for dim, size in enumerate(cut.operands[0].dense) if size == 1]
        cut.become(aten.squeeze.dims, cut.node.args[0], dims)


@rewrites("expand", "broadcast_to")
def expand(cut: Cut) -> None:
    cut.node.update_arg(1, _sizes(cut, list(cut.argument(1))))


@rewrites("unflatten")
def unflatten(cut: Cut) -> None:
    dim = cut.arguments[1] % len(cut.operands[0].dense)
    cut.node.update_arg(2, _sizes(cut, list(cut.argument(2)), first=dim))


@rewrites("zeros", "ones", "full", "empty")
def filled(cut: Cut) -> None:
    cut.node.update_arg(0, _sizes(cut, list(cut.argument(0))))


@rewrites("new_zeros", "new_ones", "new_full", "new_empty")
def filled_like(cut: Cut) -> None:
    cut.node.update_arg(1, _sizes(cut, list(cut.argument(1))))


@rewrites("slice")
def slice_(cut: Cut) -> None:
    source = cut.operands[0]
    dim, start, end, step = (*cut.arguments[1:], None, None, None, None)[:4]
    dim = (dim or 0) % len(source.dense)
    keep = source.indices[dim]
    if keep is None:
        return
    chosen = torch.arange(source.dense[dim])[slice(start, end, step)]
    if step not in (None, 1):
        _select(cut, dim, chosen[torch.isin(chosen, keep)], keep)
        return
    first, last = (int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else (0, 0)
    begin, stop = int((keep < first).sum()), int((keep < last).sum())
    cut.become(aten.slice.Tensor, cut.node.args[0], dim, begin, stop)


@rewrites("narrow")
def narrow(cut: Cut) -> None:
    source, dim = cut.operands[0], cut.arguments[1] % len(cut.operands[0].dense)
    keep = source.indices[dim]
    if keep is not None:
        first, last = cut.arguments[2], cut.arguments[2] + cut.arguments[3]
        begin, stop = int((keep < first).sum()), int((keep < last).sum())
        cut.become(aten.slice.Tensor, cut.node.args[0], dim, begin, stop)


@rewrites("select")
def select(cut: Cut) -> None:
    source, dim = cut.operands[0], cut.arguments[1] % len(cut.operands[0].dense)
    keep = source.indices[dim]
    if keep is not None:
        wanted = cut.arguments[2] % source.dense[dim]
        cut.become(aten.select.int, cut.node.args[0], dim, int((keep < wanted).sum()))


@rewrites("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(cut: Cut) -> None:
    source = cut.operands[0]
    given: Any = cut.arguments[2] if len(cut.arguments) > 2 else cut.node.kwargs.get("dim", 0)
    dim = given % len(source.dense)
    if source.indices[dim] is not None:
        sizes = [part.shape[dim] for part in cut.results]
        cut.become(aten.split_with_sizes.default, cut.node.args[0], sizes, dim)


@rewrites("channel_shuffle")
def channel_shuffle(cut: Cut) -> None:
    """On fewer channels the positions are other ones, so the shuffle becomes a selection."""
    keep, count = cut.operands[0].indices[1], cut.operands[0].dense[1]
    if keep is not None:
        order = torch.arange(count).view(cut.arguments[1], -1).t().reshape(-1)
        _select(cut, 1, order[torch.isin(order, keep)], keep)


@rewrites("roll")
def roll(cut: Cut) -> None:
    """Channels roll by selection, since their positions are other ones now; whole dimensions roll as before."""
    source, taken, rest = cut.operands[0], cut.node.args[0], []
    for shift, given in zip(*cut.arguments[1:3], strict=True):
        dim = given % len(source.dense)
        keep = source.indices[dim]
        if keep is None:
            rest.append((shift, dim))
            continue
        order = torch.arange(source.dense[dim]).roll(shift)
        index = cut.constant(torch.searchsorted(keep, order[torch.isin(order, keep)]), "index")
        with cut.network.graph.inserting_before(cut.node):
            taken = cut.network.graph.call_function(aten.index_select.default, (taken, dim, index))
    if rest:
        cut.become(aten.roll.default, taken, *(list(column) for column in zip(*rest, strict=True)))
    else:
        cut.become(aten.alias.default, taken)


def _select(cut: Cut, dim: int, wanted: Tensor, keep: Tensor) -> None:
    """Replace the node by an index_select of ``wanted`` dense indices from a source that holds ``keep``."""
    index = cut.constant(torch.searchsorted(keep, wanted), "index")
    cut.become(aten.index_select.default, cut.node.args[0], dim, index)


@rewrites("pad", "constant_pad_nd")
def pad(cut: Cut) -> None:
    widths, rank = list(cut.arguments[1]), len(cut.result.dense)
    for dim, keep in enumerate(cut.result.indices):
        position = 2 * (rank - 1 - dim)
        if keep is None or position >= len(widths) or not (widths[position] or widths[position + 1]):
            continue
        before, inner = widths[position], cut.operands[0].dense[dim]
        widths[position] = int((keep < before).sum())
        widths[position + 1] = int((keep >= before + inner).sum())
    cut.node.update_arg(1, widths)


@rewrites("conv1d", "conv2d", "conv3d")
def convolution(cut: Cut) -> None:
    """A grouped convolution keeps the groups that still have outputs."""
    conv_groups = cut.arguments[6] if len(cut.arguments) > 6 else 1
    weight = cut.operands[1]
    if conv_groups > 1 and not weight.whole:
        width = weight.dense[0] // conv_groups
        live = len(torch.unique(weight.along(0) // width))
        cut.node.update_arg(6, live)


@rewrites("linear")
def linear(cut: Cut) -> None:
    """A weight that has dropped some of the model's raw inputs picks the rest."""
    source, wanted = cut.operands[0], cut.operands[1].indices[1]
    if wanted is None or source.indices[-1] is not None:
        return
    taken, dim = cut.node.args[0], len(source.dense) - 1
    earlier = _earlier_selection(cut.network, taken, dim)
    if earlier is not None:
        taken, positions = earlier
        wanted = positions[wanted]
    index = cut.constant(wanted, "inputs")
    with cut.network.graph.inserting_before(cut.node):
        picked = cut.network.graph.call_function(aten.index_select.default, (taken, dim, index))
    cut.node.update_arg(0, picked)


def _earlier_selection(network: GraphNetwork, node: Any, dim: int) -> tuple[fx.Node, Tensor] | None:
    """Where the input is a selection already, what it selects from and which positions."""
    if not isinstance(node, fx.Node) or op_name(node) != "index_select" or node.args[1] != dim:
        return None
    source, index = node.args[0], node.args[2]
    if not isinstance(source, fx.Node) or not isinstance(index, fx.Node) or index.op != "get_attr":
        return None
    return source, attribute(network, str(index.target))


@rewrites("scaled_dot_product_attention")
def attention(cut: Cut) -> None:
    """The default scale speaks of the dense head width, so it is written down."""
    query = cut.operands[0]
    if query.indices[-1] is not None and cut.node.kwargs.get("scale") is None:
        kwargs = dict(cut.node.kwargs)
        cut.node.kwargs = {**kwargs, "scale": 1 / math.sqrt(query.dense[-1])}
