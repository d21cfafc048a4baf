"""One node of the walk that labels a graph: what a rule is given, and how the rule of an operator is applied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.labels.space import LabelSpace, MacsFact
from l0compress.graph.labels.values import Shape, Value, core, varying
from l0compress.graph.nodes.constant_index import constant_index
from l0compress.graph.nodes.network import op_name
from l0compress.graph.operators.record import Result, is_pointwise, operator_of

NO_RULE = "no rule for"  # how the reason begins where an operator is unknown


def one_or_many(values: tuple[Value, ...]) -> Result:
    """What a rule returns: the value itself for one tensor, a tuple for several."""
    return values if len(values) != 1 else values[0]


@dataclass(frozen=True, eq=False)
class Step:
    """One node of the walk.

    Attributes:
        args, kwargs: the node's own, with every tensor replaced by its :class:`Value` and every symbolic size by the
            number it has in the example.
        shapes: the shape of each tensor that the node returns.
        graph: the graph that is walked.
    """

    space: LabelSpace
    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[Shape, ...]
    graph: CapturedGraph

    @property
    def name(self) -> str:
        return op_name(self.node)

    @property
    def batch_size(self) -> int:
        """The example's batch, by which multiply-accumulates are divided."""
        return self.graph.batch_size

    def constant_index(self, argument: object) -> torch.Tensor | None:
        """The values of an index argument of the node, where they are known before the model runs."""
        return constant_index(self.graph.graph_module, argument)

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    @property
    def returns_list(self) -> bool:
        """Whether the operator returns a list of tensors, be it a list of one."""
        return isinstance(self.node.meta.get("val"), (list, tuple))

    def get(self, position: int, keyword: str, default: Any = None) -> Any:
        """An argument that may be given either way."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(keyword, default)

    def tensors(self) -> list[Value]:
        """Every tensor operand, in order, nested ones included."""
        leaves = pytree.tree_leaves((self.args, self.kwargs), is_leaf=lambda leaf: isinstance(leaf, Value))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def is_parameter(self, position: int) -> bool:
        """Whether an argument is a parameter or buffer itself."""
        source = self.node.args[position]
        return isinstance(source, fx.Node) and source.op == "get_attr"

    def is_dynamic(self, position: int, dim: int) -> bool:
        """Whether the size of a tensor argument along ``dim`` is free."""
        source = self.node.args[position]
        return isinstance(source, fx.Node) and isinstance(source.meta["val"].shape[dim], torch.SymInt)

    def reads_input(self, source: object) -> bool:
        """Whether a node is the model's own input, merely rearranged or rescaled on the way."""
        while isinstance(source, fx.Node) and source.op == "call_function":
            if op_name(source) == "index_select":  # a selection that earlier surgery has made
                source = source.args[0]
                continue
            tensors = [parent for parent in source.all_input_nodes if isinstance(parent.meta.get("val"), torch.Tensor)]
            if len(tensors) != 1 or not (operator_of(source).rearranges or is_pointwise(source)):
                return False
            source = tensors[0]
        return isinstance(source, fx.Node) and source.op == "placeholder"

    def freeze(self, value: Value, reason: str) -> None:
        self.space.freeze_value_(value, self.node, reason)

    def freeze_labels(self, labels: Iterable[torch.Tensor | None], reason: str) -> None:
        """Freeze those labels that there are."""
        for each in labels:
            if each is not None:
                self.space.freeze_(each, self.node, reason)

    def frozen(self, reason: str) -> tuple[Value, ...]:
        """Freeze every operand; returns the results, of which nothing can go either."""
        for value in self.tensors():
            self.freeze(value, reason)
        return tuple(Value(shape) for shape in self.shapes)

    def record_macs(self, macs: int, planes: tuple[torch.Tensor, ...]) -> None:
        """Say that ``macs`` multiply-accumulates over the example batch go with the live counts of each plane."""
        labelled = prod(core(plane).numel() for plane in planes)
        self.space.macs.append(MacsFact(self.node, macs / labelled / self.batch_size, planes))

    def passed(self, value: Value, mixed: frozenset[int], reason: str) -> tuple[torch.Tensor, ...]:
        """The planes of a value whose dimensions ``mixed`` are mixed and therefore stay whole.

        A plane over mixed dimensions alone is frozen. One that reaches beyond them (heads x width, mixed over the
        width) still lets whole heads go: its labels are united along the mixed dimensions.
        """
        kept = []
        for plane in value.planes:
            dims = varying(plane)
            if dims & mixed and dims <= mixed:
                self.space.freeze_(plane, self.node, reason)
            elif dims & mixed:
                first = plane
                for dim in dims & mixed:
                    first = first.narrow(dim, 0, 1)
                self.space.unite_(plane, first)
                kept.append(first.expand(plane.shape))
            else:
                kept.append(plane)
        return tuple(kept)


def elementwise(step: Step) -> Result:
    """Every operand loses the same elements."""
    merged = step.space.merge(step.tensors(), step.shape, step.node)
    return one_or_many(tuple(merged for _ in step.shapes))


def apply_rule(step: Step) -> Result:
    """The rule of the step's operator; without one, everything it touches is frozen."""
    found = operator_of(step.node).label
    if found is None and is_pointwise(step.node):
        found = elementwise
    if sized_by_data(step.node):
        if found is None or not _treats_rows_alike(step.node):
            return step.frozen("the size of the result depends on the data")
        counted = len(step.space.macs)
        result = found(step)
        del step.space.macs[counted:]  # there is no number to count
        return result
    if found is not None:
        counted = len(step.space.macs)
        result = found(step)
        _count_macs(step, result, counted)
        return result
    hint = "; add one with l0compress.register_operator" if "::" in step.name else ""
    return step.frozen(f"{NO_RULE} {step.node.target}{hint}")


def _count_macs(step: Step, result: Result, counted: int) -> None:
    """What a record counts goes with the channels of the result, where its rule has not said what it goes with."""
    count = operator_of(step.node).macs
    if count is not None and len(step.space.macs) == counted:
        first = result[0] if isinstance(result, tuple) else result
        step.record_macs(count(step.node), () if first is None else first.planes)


def _treats_rows_alike(node: fx.Node) -> bool:
    """Masks are left out: one may reach over several dimensions, of which labels know nothing."""
    masked = any(getattr(source.meta.get("val"), "dtype", None) is torch.bool for source in node.all_input_nodes)
    return is_pointwise(node) or (operator_of(node).any_rows and not (op_name(node) == "index" and masked))


def sized_by_data(node: fx.Node) -> bool:
    """Whether the node returns a tensor whose size no input shape determines, as ``x[x > 0]`` does."""
    sizes = [size for tensor in pytree.tree_leaves(node.meta.get("val")) for size in getattr(tensor, "shape", ())]
    return any(isinstance(size, torch.SymInt) and size.node.hint is None for size in sizes)
