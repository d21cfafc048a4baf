"""The table of label rules, and the step of the walk that a rule is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.constants import constant_index
from l0compress.graph.network import op_name
from l0compress.graph.space import LabelSpace
from l0compress.graph.values import Shape, Value, varying

Result = Value | tuple[Value | None, ...]
Rule = Callable[["Step"], Result]

# Movements that neither mix nor repeat elements: an index_select may undo them.
REARRANGING = frozenset(
    {
        "view",
        "reshape",
        "_unsafe_view",
        "permute",
        "transpose",
        "t",
        "contiguous",
        "clone",
        "alias",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "to",
    }
)

# What moves elements and changes none, so that a zero stays one.
MOVEMENTS = REARRANGING | {
    *("numpy_T", "mT", "swapaxes", "swapdims", "movedim", "moveaxis", "flip", "slice", "narrow", "select", "unbind"),
    *("split", "split_with_sizes", "chunk", "cat", "concat", "stack", "expand", "repeat", "detach", "_to_copy"),
    "getitem",
}

# Those of them that bring the two dimensions of a matrix to each other's places.
TRANSPOSING = frozenset({"t", "numpy_T", "mT", "transpose", "permute", "swapaxes", "swapdims"})

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
TRANSPOSED_CONVOLUTIONS = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})

NO_RULE = "no rule for"  # how the reason begins where an operator is unknown


def one_or_many(values: tuple[Value, ...]) -> Result:
    """What a rule returns: the value itself for one tensor, a tuple for several."""
    return values if len(values) != 1 else values[0]


# Operators that treat every row alike, however many the data selects.
_ANY_ROWS = frozenset({"linear", "index", "getitem", "dropout", "to", "unsqueeze", "silu", "gelu", "relu"})

_RULES: dict[str, Rule] = {}


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
            if len(tensors) != 1 or not (op_name(source) in REARRANGING or is_pointwise(source)):
                return False
            source = tensors[0]
        return isinstance(source, fx.Node) and source.op == "placeholder"

    def freeze(self, value: Value, reason: str) -> None:
        self.space.freeze_value_(value, self.node, reason)

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


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name, without namespace and overload."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return register


def known_rule(name: str) -> Rule | None:
    """The rule of an operator, by the name that :func:`op_name` gives it."""
    return _RULES.get(name)


def add_rule(name: str, function: Rule) -> None:
    _RULES[name] = function


def is_pointwise(node: fx.Node) -> bool:
    """Whether PyTorch itself tags the operator as pointwise."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def apply_rule(step: Step) -> Result:
    """The rule of the step's operator; without one, everything it touches is frozen."""
    found = _RULES.get(step.name)
    if found is None and is_pointwise(step.node):
        found = _RULES["pointwise"]
    if sized_by_data(step.node):
        if found is None or not _treats_rows_alike(step.node):
            return _frozen(step, "the size of the result depends on the data")
        counted = len(step.space.macs)
        result = found(step)
        del step.space.macs[counted:]  # there is no number to count
        return result
    if found is not None:
        return found(step)
    hint = "; l0compress.register_rule can teach one" if "::" in step.name else ""
    return _frozen(step, f"{NO_RULE} {step.node.target}{hint}")


def _treats_rows_alike(node: fx.Node) -> bool:
    """Masks are left out: one may reach over several dimensions, of which labels know nothing."""
    masked = any(getattr(source.meta.get("val"), "dtype", None) is torch.bool for source in node.all_input_nodes)
    return is_pointwise(node) or (op_name(node) in _ANY_ROWS and not (op_name(node) == "index" and masked))


def _frozen(step: Step, reason: str) -> Result:
    for value in step.tensors():
        step.freeze(value, reason)
    return tuple(Value(shape) for shape in step.shapes)


def sized_by_data(node: fx.Node) -> bool:
    """Whether the node returns a tensor whose size no input shape determines, as ``x[x > 0]`` does."""
    sizes = [size for tensor in pytree.tree_leaves(node.meta.get("val")) for size in getattr(tensor, "shape", ())]
    return any(isinstance(size, torch.SymInt) and size.node.hint is None for size in sizes)
