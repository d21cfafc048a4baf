"""What each layer should return: the layer of the dense network that it was, and the sum that both write to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, fx

from l0compress.errors import PlanError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.kept import kept_of
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.labels.walk import Value
from l0compress.graph.nodes.network import GraphNetwork, op_name
from l0compress.training.repair.beside import Beside, Keeps, beside
from l0compress.training.repair.contractions import Contraction, Contractions
from l0compress.training.repair.pre_activations import RecurrentTask, recurrent_task


@dataclass(frozen=True, eq=False)
class Task:
    """A layer to solve.

    Attributes:
        layer: the layer in the small network.
        twin: what it should return, in the dense network.
        keeps: what of that is left in the small network.
        beside: the sum that it writes to; None where it writes to none whose other summand is known by then.
        mask: bool, of the small weight's shape, True = may differ from zero; None where every weight may.
    """

    layer: Contraction
    twin: fx.Node
    keeps: Keeps
    beside: Beside | None
    mask: Tensor | None


class Tasks:
    """The layers of a small network that can be solved, by the node where each is to be solved."""

    def __init__(self, small: GraphNetwork, dense: GraphNetwork, plan: KeepPlan) -> None:
        self._plan = plan
        self._small, self._known = Contractions(small), Contractions(dense)
        self._dense = {node.name: node for node in dense.graph.nodes}
        self._position = {node: position for position, node in enumerate(small.graph.nodes)}
        # What single weights are zero is part of the budget.
        self._masks = {name: mask for name, mask in plan.small_masks().items() if not bool(mask.all())}
        found = [task for node in small.graph.nodes if (task := self._task(node)) is not None]
        self.by_node = {task.layer.node: task for task in found}
        self.recurrent = {task.node: task for node in small.graph.nodes if (task := self._recurrent(node))}

    def taken(self) -> Counter[fx.Node]:
        """The nodes of the dense network whose values are asked for, and how often."""
        nodes = Counter(task.twin for task in self.by_node.values())
        nodes.update(task.beside.there for task in self.by_node.values() if task.beside is not None)
        nodes.update(node for task in self.recurrent.values() for node in task.taken())
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

    def _recurrent(self, node: fx.Node) -> RecurrentTask | None:
        def own(param: fx.Node) -> str | None:
            name = self._small.own(param)
            return None if name in self._masks else name

        return recurrent_task(node, self.twin(node), own, self._plan)

    def _task(self, node: fx.Node) -> Task | None:
        layer, twin = self._small.of(node), self.twin(node)
        known = None if layer is None or twin is None else self._known.of(twin)
        if layer is None or known is None or (known.weight, known.bias) != (layer.weight, layer.bias):
            return None
        keeps = self.keeps(known.last.name)
        if keeps is None:
            return None
        at = self._position[layer.node]
        other = beside(layer.last, self.twin, self.keeps, lambda source: self._position[source] < at)
        return Task(layer, known.last, keeps, other, self._masks.get(layer.weight))


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
                f"the small graph's {name!r} has shape {tuple(state[name].shape)} where the plan leaves {expected}.",
                fix="Give repair the graph that shrink(graph, plan) returned, and the same plan.",
            )
