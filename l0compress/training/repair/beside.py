"""Sums that a layer writes to: what the other summand lacks of the dense one, the layer can make up for.

A residual stream so does not drift away from the dense one: each layer that writes to it sees what is missing so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.cut.plan import cut
from l0compress.graph.nodes.mutation import writes
from l0compress.graph.nodes.network import op_name
from l0compress.graph.nodes.shapes import node_shape
from l0compress.graph.operators.record import operator_of
from l0compress.training.repair.lockstep import Lockstep

Keeps = tuple[Tensor | None, ...]
_SAME_IN_EVALUATION = frozenset({"dropout", "feature_dropout", "alpha_dropout", "alias", "clone", "detach"})
# On the way to the sum a channel may be scaled; what is scaled down this much cannot make up for anything.
_LEAST_FACTOR = 0.05


@dataclass(frozen=True, eq=False)
class Beside:
    """The other summand of a sum that a layer writes to.

    Attributes:
        here, there: the node in the small and in the dense network.
        keeps: what of the dense one is left in the small one.
        start: where the layer returns, in the small network.
        path: the nodes from there to the sum, which move and scale what it returns.
    """

    here: fx.Node
    there: fx.Node
    keeps: Keeps
    start: fx.Node
    path: tuple[fx.Node, ...]

    def lacking(self, network: Lockstep, number: int, wanted: Tensor, there: Tensor) -> Tensor:
        """How much more a layer has to return in one batch than ``wanted``, given the other summand as it should be."""
        missing = cut(there, self.keeps) - network.value(self.here, number)
        if not self.path:
            return missing.expand_as(wanted)
        with torch.enable_grad():
            start = wanted.detach().requires_grad_()
            end = network.follow(self.path, self.start, start, number)
        # The way is linear but for a constant, and moves or scales each element: its adjoint, over the squared factors.
        with torch.no_grad():
            factors = network.follow(self.path, self.start, wanted + 1, number) - end.detach()
        (pulled,) = torch.autograd.grad(end, start, missing.expand_as(end), retain_graph=True)
        (squares,) = torch.autograd.grad(end, start, factors)
        near_zero = squares <= _LEAST_FACTOR**2 * squares.max()
        return torch.where(near_zero, 0.0, pulled / squares)


def beside(
    last: fx.Node,
    twin_of: Callable[[fx.Node], fx.Node | None],
    keeps_of: Callable[[str], Keeps | None],
    known_by: Callable[[fx.Node], bool],
) -> Beside | None:
    """The other summand of the sum that a node of the small network goes into, None where there is none to reckon with.

    Args:
        twin_of: the node of the dense network that a node was.
        keeps_of: what of a node of the dense network is left.
        known_by: whether a node has run by the time the layer is solved.
    """
    path = [last]
    while len(path[-1].users) == 1:
        (user,) = path[-1].users
        if not _moves_or_scales(user, path[-1], known_by):
            break
        path.append(user)
    total = next(iter(path[-1].users), None)
    source = twin_of(path[-1])
    there = None if total is None else twin_of(total)
    if total is None or source is None or there is None or len(path[-1].users) != 1:
        return None
    one, other = _other(total, path[-1]), _other(there, source)
    if one is None or other is None or not known_by(one):
        return None
    keeps = keeps_of(other.name)
    plain = all(op_name(node) in _SAME_IN_EVALUATION for node in path[1:])
    return None if keeps is None else Beside(one, other, keeps, last, () if plain else tuple(path[1:]))


def _moves_or_scales(node: fx.Node, source: fx.Node, known_by: Callable[[fx.Node], bool]) -> bool:
    rest = [operand for operand in node.all_input_nodes if operand is not source]
    if not node.args or node.args[0] is not source or writes(node):
        return False
    if op_name(node) in _SAME_IN_EVALUATION or operator_of(node).rearranges:
        return all(known_by(operand) for operand in rest)
    if any(operand.op != "get_attr" for operand in rest):
        return False
    return op_name(node) == "mul" or (op_name(node) == "batch_norm" and node.args[5] is False)


def _other(total: fx.Node, summand: fx.Node) -> fx.Node | None:
    """What else a sum of two activations adds, where it has the shape of ``summand``."""
    if op_name(total) != "add" or len(total.args) != 2 or total.kwargs or summand not in total.args:
        return None
    other: Any = total.args[1] if total.args[0] is summand else total.args[0]
    if not isinstance(other, fx.Node) or other.op == "get_attr" or other is summand:
        return None
    return other if node_shape(total) == node_shape(summand) else None
