"""What the package knows of one operator, in one record, and the table of all records.

An operator without a record freezes the channels that it touches, which is always right and never prunable. Operators
that PyTorch tags as pointwise need none.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

from l0compress.graph.labels.values import Value
from l0compress.graph.nodes.network import op_name

if TYPE_CHECKING:
    from l0compress.graph.operators.cut import Cut
    from l0compress.graph.operators.step import Step

Result = Value | tuple[Value | None, ...]
Rule = Callable[["Step"], Result]
Rewrite = Callable[["Cut"], None]


@dataclass(frozen=True)
class Weights:
    """Which arguments of an operator are weights.

    Attributes:
        places: their positions. The first that is a parameter bears the multiply-accumulates.
        axis: the dimension of the first one that has one int8 scale per index; None where int8 files keep it in float.
        looked_up: whether rows of it are picked, so that a zero in it saves no multiplication.
    """

    places: tuple[int, ...]
    axis: int | None = None
    looked_up: bool = False


def _always(_: fx.Node, __: Container[str]) -> bool:
    return True


def _last(node: fx.Node) -> int:
    return node.meta["val"].dim() - 1


@dataclass(frozen=True)
class EmptySum:
    """What is left of an operator that sums over a width of zero: what it adds to the sum, or zero.

    Attributes:
        bias: the position of what it adds; None where it adds nothing.
        dim: the dimension of a node's result along which the bias runs.
        holds: whether this is so for a node that has lost operands, given the names of the nodes that are empty.
    """

    bias: int | None = None
    dim: Callable[[fx.Node], int] = _last
    holds: Callable[[fx.Node, Container[str]], bool] = _always


def _any_node(_: fx.Node) -> bool:
    return True


@dataclass(frozen=True)
class OfConstant:
    """What an operator makes of an operand that is the same for every sample and position.

    Attributes:
        passes: whether a node returns such a constant, too, of size 1 along the same dimensions.
        keeps_zero: whether zero stays zero.
        rewrite: how a node is adapted where it does; None leaves it as it is.
    """

    passes: Callable[[fx.Node], bool] = _any_node
    keeps_zero: bool = False
    rewrite: Rewrite | None = None


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Everything that the package knows of one operator. What is left out, the operator does not have or need.

    Attributes:
        label: how labels pass: from a :class:`~l0compress.graph.operators.step.Step` to the value of the result. It
            may unite, tie or freeze labels on the way.
        macs: multiply-accumulates of a node over the whole example batch.
        weights: which of its arguments are weights.
        empty_sum: what is left of it when the width that it sums over is zero.
        of_constant: what it makes of a constant operand.
        rewrite: how a node is adapted once its operands are smaller; needed where the operator is given sizes,
            positions or counts of channels as numbers.
        moves: it moves elements and changes none, so that a zero stays one.
        rearranges: it moves them without mixing or repeating, so that an ``index_select`` can undo it.
        transposes: it swaps the two dimensions of a matrix.
        joins: it joins a list of tensors, and does without the empty ones.
        any_rows: it treats every row alike, however many the data select.
    """

    label: Rule | None = None
    macs: Callable[[fx.Node], int] | None = None
    weights: Weights | None = None
    empty_sum: EmptySum | None = None
    of_constant: OfConstant | None = None
    rewrite: Rewrite | None = None
    moves: bool = False
    rearranges: bool = False
    transposes: bool = False
    joins: bool = False
    any_rows: bool = False


NOTHING = Operator()
_TABLE: dict[str, Operator] = {}


def register(operator: Operator, *names: str) -> None:
    """Enter a record under the names that :func:`~l0compress.graph.nodes.network.op_name` gives the operators."""
    for name in names:
        _TABLE[name] = operator


def known_operator(name: str) -> Operator | None:
    """The record of a name, None where there is none."""
    return _TABLE.get(name)


def operator_of(node: object) -> Operator:
    """The record of a node's operator; an empty one where there is none, and where ``node`` calls no operator."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return NOTHING
    return _TABLE.get(op_name(node), NOTHING)


def is_pointwise(node: fx.Node) -> bool:
    """Whether PyTorch itself tags the operator as pointwise."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
