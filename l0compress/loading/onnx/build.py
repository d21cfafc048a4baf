"""Build an ``fx.GraphModule`` from a parsed ONNX graph: one call per node, weights as parameters under their own names.

What depends only on constants is computed here, once. What depends on sizes is computed in every call, on the host, so
that whoever captures the module sees size arithmetic where the file has tensor arithmetic.
"""

from __future__ import annotations

import inspect
import operator as op
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from l0compress.errors import ModelError
from l0compress.loading.onnx.families import find
from l0compress.loading.onnx.naming import Attributes, identifier
from l0compress.loading.onnx.parsed import Graph, Node, NodeError
from l0compress.loading.onnx.refused import reason_against
from l0compress.loading.onnx.registry import Operator
from l0compress.loading.onnx.running import OnnxTracer, run
from l0compress.loading.onnx.tracked import (
    Flow,
    Known,
    Value,
    has_negative,
    is_size,
    makes_zeros,
    result_of,
    stays_on_host,
    value_now,
)
from l0compress.loading.onnx.values import Refusal, as_tensor, is_host
from l0compress.loading.references import FOREIGN_ERRORS, first_line

OLDEST_OPSET = 7


def build(graph: Graph, opset: int) -> fx.GraphModule:
    """Build a module from a graph, in evaluation mode.

    Args:
        graph: the parsed file.
        opset: the version of ONNX's own operators that it uses.

    Raises:
        NodeError: an operator is unknown, or does not accept what the node gives it.
    """
    builder = _Builder(opset)
    values: dict[str, Value] = {"": None}
    for name in graph.inputs:
        values[name] = Flow(builder.placeholder(name), perhaps_host=False)
    builder.add(graph, values)
    outputs = [builder.returned(values[name]) for name in graph.outputs]
    builder.graph.output(tuple(outputs) if len(outputs) > 1 else outputs[0])
    builder.graph.eliminate_dead_code()
    return fx.GraphModule(builder.attributes.root, builder.graph, class_name="OnnxModel").eval()


class _Builder:
    """The graph under construction, with its parameters and buffers."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.graph = fx.Graph(tracer_cls=OnnxTracer)
        self.attributes = Attributes()
        self._inputs: set[str] = set()

    def placeholder(self, name: str) -> fx.Node:
        given = identifier(name)
        while given in self._inputs:
            given += "_"
        self._inputs.add(given)
        return self.graph.placeholder(given)

    def add(self, graph: Graph, values: dict[str, Value]) -> None:
        """Add the calls of a graph; their results are added to ``values``."""
        for name, tensor in graph.constants.items():
            values[name] = Known(tensor, name, trained=True)
        for node in graph.nodes:
            given = [values[name] for name in node.inputs]
            while given and given[-1] is None:
                given.pop()
            try:
                results = self._node(node, given, values)
            except Refusal as reason:
                raise NodeError(node, str(reason)) from reason
            for name, result in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = result

    def returned(self, value: Value) -> fx.Node:
        """Return the module's output for a value: always a tensor."""
        if isinstance(value, Flow):
            return self.graph.call_function(as_tensor, (value.node,)) if value.perhaps_host else value.node
        if value is None:
            raise ModelError("The ONNX model returns a value that has no name.", fix="Export it again.")
        return self._attribute(value)

    def _node(self, node: Node, given: list[Value], values: dict[str, Value]) -> Sequence[Value]:
        if node.operator == "Constant":
            return [Known(node.attributes["value"], node.outputs[0], trained=False)]
        if node.operator == "If":
            return self._branch(node, given, values)
        if node.operator == "Identity" and given and isinstance(given[0], Known):
            return given
        found = find(node.operator, self.opset)
        if found is None:
            raise Refusal(reason_against(node.operator))
        attributes = self._checked(found, node, given)
        folded = self._folded(found, given, attributes, node)
        return folded if folded is not None else self._call(found, node, given, attributes)

    def _branch(self, node: Node, given: list[Value], values: dict[str, Value]) -> Sequence[Value]:
        """Add the branch that a constant condition takes."""
        (condition,) = given
        if not isinstance(condition, Known):
            raise Refusal(
                "its branch depends on a value known only at run time; export the model for one of them, or simplify "
                "the file so that the condition is constant"
            )
        taken = node.branches["then_branch" if bool(condition.tensor.reshape(-1)[0]) else "else_branch"]
        inner = dict(values)
        self.add(taken, inner)
        return [inner[name] for name in taken.outputs]

    def _checked(self, found: Operator, node: Node, given: list[Value]) -> dict[str, Any]:
        """Return the attributes of a node that its function takes."""
        unknown = found.unknown(list(node.attributes))
        if unknown:
            raise Refusal(f"its attribute {unknown[0]!r} is not supported")
        attributes = dict(node.attributes)
        if found.takes("wanted"):
            attributes["wanted"] = (
                max((place for place, name in enumerate(node.outputs) if name in node.used), default=0) + 1
            )
        if found.takes("num_outputs"):
            attributes.setdefault("num_outputs", len(node.outputs))
        try:
            inspect.signature(found.function).bind(*given, **attributes)
        except TypeError as reason:
            raise Refusal(f"it does not fit its operator ({reason})") from reason
        except ValueError:  # a built-in PyTorch function, which has no signature
            return attributes
        return attributes

    def _folded(
        self, found: Operator, given: list[Value], attributes: dict[str, Any], node: Node
    ) -> Sequence[Value] | None:
        """Return the results of size arithmetic with known values; None if something has to be run."""
        known = [value for value in given if isinstance(value, Known)]
        sizes = all(v is None or is_size(v) or position in found.sizes for position, v in enumerate(given))
        if not (found.folds and known and sizes) or any(isinstance(value, Flow) for value in given):
            return None
        try:
            literals = [value.literal if isinstance(value, Known) else None for value in given]
            results = found.function(*literals, **attributes)
        except FOREIGN_ERRORS as reason:
            raise Refusal(first_line(reason)) from reason
        results = results if found.many else (results,)
        if not is_host(*results):
            return None
        like = next((value.tensor for value in known if value.tensor.is_floating_point()), None)
        return [Known(as_tensor(r, like), name, trained=False) for r, name in zip(results, node.outputs, strict=False)]

    def _call(self, found: Operator, node: Node, given: list[Value], attributes: dict[str, Any]) -> Sequence[Value]:
        perhaps_host = found.folds and stays_on_host(found, given)
        perhaps_host |= node.operator in ("Shape", "Size")
        arguments = self._prepared(found, given, attributes)
        if arguments is None:
            arguments = [self._argument(found, given, position, perhaps_host) for position in range(len(given))]
        called = self.graph.create_node(
            "call_function",
            run,
            (node.operator, self.opset, node.label, tuple(arguments), attributes),
            {},
            identifier(node.operator.rpartition(":")[2]).lower(),
        )
        computed, zeros = self._constant(found, node, given, attributes), makes_zeros(found, node, given)
        if not found.many:
            return [Flow(called, perhaps_host, computed and partial(result_of, computed, None), zeros)]
        return [
            Flow(
                self.graph.call_function(op.getitem, (called, position)),
                perhaps_host,
                computed and partial(result_of, computed, position),
                zeros,
            )
            if name in node.used
            else None
            for position, name in enumerate(node.outputs)
        ]

    def _constant(
        self, found: Operator, node: Node, given: list[Value], attributes: dict[str, Any]
    ) -> Callable[[], Any] | None:
        """Return a function that computes a node now, if its inputs are weights or computed from weights; else None."""
        if not given or any(isinstance(value, Flow) and value.constant is None for value in given):
            return None

        def compute() -> Any:
            taken = [
                value.literal if isinstance(value, Known) and position in found.sizes else value_now(value)
                for position, value in enumerate(given)
            ]
            with torch.no_grad():
                return run(node.operator, self.opset, node.label, taken, attributes)

        return compute

    def _prepared(self, found: Operator, given: list[Value], attributes: dict[str, Any]) -> list[Any] | None:
        """Return the arguments of an operator that needs its weights in another form."""
        if found.prepare is None:
            return None
        # A layer starts from its own zeros by default; shared ones would tie the widths of layers.
        given = [None if isinstance(value, Flow) and value.zeros else value for value in given]
        made = found.prepare([value_now(value) for value in given], attributes)
        arguments: list[Any] = []
        for position, value in enumerate(given):
            if position in made and value is not None:
                name = value.name if isinstance(value, Known) else value.node.name
                parts = [Known(part, f"{name}_{suffix}", trained=True) for suffix, part in made[position]]
                arguments.append(tuple(self._attribute(part, weight=True) for part in parts))
            else:
                arguments.append(self._argument(found, given, position, False))
        return arguments

    def _argument(self, found: Operator, given: list[Value], position: int, perhaps_host: bool) -> Any:
        """Return one argument of a call: another call's result, a number, or a parameter."""
        value = given[position]
        if not isinstance(value, Known):
            return None if value is None else value.node
        others = any(isinstance(other, Flow) for place, other in enumerate(given) if place != position)
        single = value.tensor.numel() == 1 and others
        literal = (
            position in found.sizes
            or (perhaps_host and value.fits_host)
            or (position in found.scalars and single)
            or (
                position in found.indices
                and not value.tensor.is_floating_point()
                and others
                and (single or has_negative(value.tensor))
            )
        )
        if literal:
            return value.literal
        if position in found.statistics:
            return self.graph.get_attr(
                self.attributes.add(value.name, value.tensor.clone(), trained=False, shared=False)
            )
        return self._attribute(value, weight=position in found.weights)

    def _attribute(self, value: Known, *, weight: bool = False) -> fx.Node:
        tensor = value.tensor
        trained = tensor.is_floating_point() and (
            weight or (value.trained and tensor.numel() > 1 and bool(torch.isfinite(tensor).all()))
        )
        return self.graph.get_attr(self.attributes.add(value.name, tensor, trained=trained))
