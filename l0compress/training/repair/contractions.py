"""Which layers can be solved anew: nodes that multiply one input by one parameter that nothing else reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from l0compress.graph.nodes.network import attribute, op_name
from l0compress.graph.operators.convolution import is_convolution, is_transposed
from l0compress.graph.operators.record import operator_of
from l0compress.training.repair.forms import Convolution, Form, Product


@dataclass(frozen=True)
class Contraction:
    """A layer that can be solved anew.

    Attributes:
        node: where the input is multiplied by the weight.
        last: where the bias has been added; ``node`` itself, or a sum behind it.
        source: the node that is multiplied.
        weight, bias: names of the parameters; None without a bias.
        form: how it reads as a matrix product.
    """

    node: fx.Node
    last: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    form: Form

    @property
    def name(self) -> str:
        """The layer's name, by its weight."""
        return self.weight.removesuffix(".weight")


class Contractions:
    """Finds the contractions of a graph."""

    def __init__(self, network: fx.GraphModule) -> None:
        self._network = network
        # Names of one tensor are one parameter, which two layers then share.
        reads = [node for node in network.graph.nodes if node.op == "get_attr"]
        self._uses = Counter(id(attribute(network, str(node.target))) for node in reads for _ in node.users)

    def of(self, node: fx.Node) -> Contraction | None:
        """The contraction that a node is, None if it is none or reads a parameter that other nodes read too."""
        name = op_name(node)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        if name == "linear":
            return self._product(node, ("input", "weight", "bias"), outputs_first=True)
        if name in ("mm", "matmul"):
            return self._product(node, ("self", "other" if name == "matmul" else "mat2", ""), outputs_first=False)
        if name == "addmm" and _argument(node, "alpha") == 1 and _argument(node, "beta") == 1:
            return self._product(node, ("mat1", "mat2", "self"), outputs_first=False)
        return self._convolution(node) if is_convolution(node) else None

    def own(self, operand: Any) -> str | None:
        """The name of a parameter that nothing else reads."""
        if not isinstance(operand, fx.Node) or operand.op != "get_attr":
            return None
        tensor = attribute(self._network, str(operand.target))
        own = isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and self._uses[id(tensor)] == 1
        return str(operand.target) if own else None

    def _product(self, node: fx.Node, names: tuple[str, str, str], *, outputs_first: bool) -> Contraction | None:
        source, weight, bias = (_argument(node, name) if name else None for name in names)
        while isinstance(weight, fx.Node) and operator_of(weight).transposes and len(weight.users) == 1:
            outputs_first, weight = not outputs_first, weight.args[0]
        name = self.own(weight)
        if name is None or attribute(self._network, name).dim() != 2 or not isinstance(source, fx.Node):
            return None
        return self._with_bias(Contraction(node, node, source, name, None, Product(outputs_first)), bias)

    def _convolution(self, node: fx.Node) -> Contraction | None:
        source, name = _argument(node, "input"), self.own(_argument(node, "weight"))
        if name is None or not isinstance(source, fx.Node):
            return None
        weight = attribute(self._network, name)
        rank = weight.dim() - 2
        if source.meta["val"].dim() != weight.dim():
            return None
        kernel, dilation = tuple(weight.shape[2:]), _each(_argument(node, "dilation"), rank)
        transposed = is_transposed(node)
        form = Convolution(
            _argument(node, "groups"),
            kernel,
            _each(_argument(node, "stride"), rank),
            dilation,
            _padding(_argument(node, "padding"), kernel, dilation),
            _each(_argument(node, "output_padding"), rank) if transposed else (0,) * rank,
            transposed,
        )
        return self._with_bias(Contraction(node, node, source, name, None, form), _argument(node, "bias"))

    def _with_bias(self, found: Contraction, bias: Any) -> Contraction | None:
        if bias is not None:
            name = self.own(bias)
            # What is added may be shared or no parameter at all; it then stays, and the weight alone is solved.
            single = name is not None and attribute(self._network, name).dim() == 1
            return Contraction(found.node, found.node, found.source, found.weight, name if single else None, found.form)
        (last, *others) = (*found.node.users, None)
        if others != [None] or last is None or not isinstance(found.form, Product) or not _is_sum(last):
            return found
        name = next((name for operand in last.args[:2] if (name := self.own(operand)) is not None), None)
        width = found.node.meta["val"].shape[-1]
        if name is None or tuple(attribute(self._network, name).shape) != (width,):
            return found
        return Contraction(found.node, last, found.source, found.weight, name, found.form)


def _is_sum(node: fx.Node) -> bool:
    return op_name(node) == "add" and len(node.args) == 2 and not node.kwargs


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of an operator by the name that its schema gives it."""
    target: Any = node.target
    for position, argument in enumerate(target._schema.arguments):
        if argument.name == name:
            default = argument.default_value if argument.has_default_value() else None
            return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)
    return None


def _each(sizes: Any, rank: int) -> tuple[int, ...]:
    listed = tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)
    return listed * rank if len(listed) == 1 else listed


def _padding(given: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if given == "valid":
        return ((0, 0),) * len(kernel)
    if given == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((size, size) for size in _each(given, len(kernel)))


def values_of(network: fx.GraphModule, contraction: Contraction) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of a contraction, as they are now."""
    bias = None if contraction.bias is None else attribute(network, contraction.bias).detach()
    return attribute(network, contraction.weight).detach(), bias
