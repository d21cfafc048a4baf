"""What each layer should return: the layer of the dense network that it was, and the sum that both write to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.errors import PlanError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.labels import Value, shape_of
from l0compress.graph.network import GraphNetwork, attribute, op_name
from l0compress.graph.plan import KeepPlan, cut
from l0compress.graph.surgery import kept_of
from l0compress.training.repair.contractions import Contraction, Contractions

Keeps = tuple[Tensor | None, ...]
_SAME_IN_EVALUATION = ("dropout", "feature_dropout", "alpha_dropout", "alias", "clone", "contiguous", "detach")
# Behind a norm that shrinks a channel this much, what a sum lacks would be blown up by the inverse.
_LEAST_FACTOR = 0.05


@dataclass(frozen=True, eq=False)
class Beside:
    """The other summand of a sum that a layer writes to.

    Attributes:
        here, there: the node in the small and in the dense network.
        keeps: what of the dense one is left in the small one.
        norm: the batch norm of the small network between layer and sum, None without one.
    """

    here: fx.Node
    there: fx.Node
    keeps: Keeps
    norm: fx.Node | None


@dataclass(frozen=True, eq=False)
class Task:
    """A layer to solve.

    Attributes:
        layer: the layer in the small network.
        twin: what it should return, in the dense network.
        keeps: what of that is left in the small network.
        beside: the sum that it writes to; None where it writes to none whose other summand is known by then.
    """

    layer: Contraction
    twin: fx.Node
    keeps: Keeps
    beside: Beside | None


class Tasks:
    """The layers of a small network that can be solved, by the node where each is to be solved."""

    def __init__(self, small: GraphNetwork, dense: GraphNetwork, plan: KeepPlan) -> None:
        self._plan = plan
        self._small, self._known = Contractions(small), Contractions(dense)
        self._dense = {node.name: node for node in dense.graph.nodes}
        self._position = {node: position for position, node in enumerate(small.graph.nodes)}
        # What single weights are zero is part of the budget.
        self._masked = {name for name, mask in plan.masks.items() if not bool(mask.all())}
        found = [task for node in small.graph.nodes if (task := self._task(node)) is not None]
        self.by_node = {task.layer.node: task for task in found}

    def taken(self) -> Counter[fx.Node]:
        """The nodes of the dense network whose values are asked for, and how often."""
        nodes = Counter(task.twin for task in self.by_node.values())
        nodes.update(task.beside.there for task in self.by_node.values() if task.beside is not None)
        return nodes

    def keeps(self, name: str) -> Keeps | None:
        """What is left of a tensor of the dense network in the small one, None where that is no rectangle."""
        value = self._plan.groups.labelled.values.get(name)
        kept = kept_of(value, self._plan) if isinstance(value, Value) else None
        return None if kept is None or kept.ragged else kept.indices

    def twin(self, node: fx.Node) -> fx.Node | None:
        """The node of the dense network that a node was."""
        twin = self._dense.get(node.name)
        return twin if twin is not None and op_name(twin) == op_name(node) else None

    def _task(self, node: fx.Node) -> Task | None:
        layer, twin = self._small.of(node), self.twin(node)
        known = None if layer is None or twin is None else self._known.of(twin)
        if layer is None or known is None or (known.weight, known.bias) != (layer.weight, layer.bias):
            return None
        keeps = self.keeps(known.last.name)
        if keeps is None or not self._masked.isdisjoint((layer.weight, str(layer.bias))):
            return None
        return Task(layer, known.last, keeps, self._beside(layer, known))

    def _beside(self, layer: Contraction, known: Contraction) -> Beside | None:
        node, norm, total = layer.last, None, None
        for user in _only_users(layer.last):
            if _is_stored_norm(user) and norm is None:
                norm = user
            elif op_name(user) not in _SAME_IN_EVALUATION:
                total = user
                break
            node = user
        if total is None or not _is_sum(total):
            return None
        there, source = self.twin(total), self.twin(node)
        if there is None or shape_of(there.meta["val"]) != shape_of(known.last.meta["val"]):
            return None
        one, other = _other(total, node), None if source is None else _other(there, source)
        if one is None or other is None or self._position[one] > self._position[layer.node]:
            return None
        keeps = self.keeps(other.name)
        return None if keeps is None else Beside(one, other, keeps, norm)


def _only_users(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that a value goes through, as long as one alone reads it."""
    while len(node.users) == 1:
        (node,) = node.users
        yield node


def _is_stored_norm(node: fx.Node) -> bool:
    """Whether a node scales channels by numbers that do not depend on the input."""
    if op_name(node) != "batch_norm" or node.args[5] is not False:
        return False
    return all(source is None or (isinstance(source, fx.Node) and source.op == "get_attr") for source in node.args[1:5])


def _is_sum(node: fx.Node) -> bool:
    return op_name(node) == "add" and len(node.args) == 2 and not node.kwargs


def _other(total: fx.Node, summand: fx.Node) -> fx.Node | None:
    """What else a sum of two activations adds."""
    if summand not in total.args:
        return None
    other = total.args[1] if total.args[0] is summand else total.args[0]
    return other if isinstance(other, fx.Node) and other.op != "get_attr" and other is not summand else None


def lacking(beside: Beside, small: GraphNetwork, here: Tensor, there: Tensor) -> Tensor:
    """What the other summand lacks of the dense one, in units of what the layer returns.

    A layer that returns so much more makes up for it in the sum.
    """
    difference = cut(there, beside.keeps) - here
    if beside.norm is None:
        return difference
    arguments: Any = beside.norm.args
    weight, variance, eps = arguments[1], arguments[4], arguments[7]
    factor = (_parameter(small, variance) + eps).rsqrt()
    factor = factor if weight is None else factor * _parameter(small, weight)
    near_zero = factor.abs() <= _LEAST_FACTOR * factor.abs().max()
    inverse = torch.where(near_zero, 0.0, 1 / factor)
    return difference * inverse.view([-1 if d == 1 else 1 for d in range(difference.dim())])


def _parameter(network: GraphNetwork, node: fx.Node) -> Tensor:
    return attribute(network, str(node.target)).detach()


def check_small(small: CapturedGraph, plan: KeepPlan) -> None:
    """Raises:
    PlanError: the small graph is not what the plan leaves.
    """
    state, dense = small.state(), plan.groups.graph.state()
    for name, keeps in plan.parameter_keeps().items():
        if name not in state or name not in dense:
            continue
        expected = tuple(n if keep is None else len(keep) for n, keep in zip(dense[name].shape, keeps, strict=True))
        if tuple(state[name].shape) != expected:
            raise PlanError(
                f"the small graph's {name!r} has shape {tuple(state[name].shape)} where the plan leaves {expected}. "
                "Nothing was changed. Give repair the graph that shrink(graph, plan) returned, and that very plan."
            )
