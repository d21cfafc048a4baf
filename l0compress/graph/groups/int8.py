"""What a model's int8 file holds: its weights, as ONNX Runtime's quantizer stores them.

requires: a captured graph.
ensures:  :func:`int8_terms`, from which both the size of a graph and that of every plan follow. Not counted is what no
          plan changes: operators, their names, the scales of activations, integers.

The rules are those of ``quantize_onnx`` with the method ``auto``. Where there are convolutions, it is static: what
products, norms, sums, look-ups and recurrent layers read becomes int8, with biases of int32. Elsewhere it is dynamic:
only the weights of products and the tables of look-ups become int8. What no rule names stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor, fx

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import attribute, op_name
from l0compress.graph.nodes.shapes import node_shape
from l0compress.graph.operators.convolution import is_convolution
from l0compress.graph.operators.record import operator_of

# Bytes, and the dimensions of the tensor along each index of which they are needed.
Term = tuple[float, tuple[int, ...]]

_SUMS = frozenset({"add", "mul", "cat", "where", "rms_norm"})
# Layers whose gates stand in another order in the file: the operators that rearrange them there are of int8, too.
_SPLIT = frozenset({"lstm", "gru"})
_SCALE = 4 + 1  # a scale, and a zero point of one byte
_INT32_SCALE = 4 + 4


def is_static(graph: fx.Graph) -> bool:
    """Whether activations are quantized with ranges that were measured beforehand: where there are convolutions."""
    return any(is_convolution(node) for node in graph.nodes)


def leads_to_weights(node: object) -> bool:
    """Whether an argument is made of parameters and buffers by moving their elements about, so that it is constant."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "get_attr":
        return True
    moved = operator_of(node).moves or op_name(node) == "constant_pad_nd"
    return moved and bool(node.all_input_nodes) and all(map(leads_to_weights, node.all_input_nodes))


def folds_into(norm: fx.Node) -> fx.Node | None:
    """The product that a batch norm becomes a part of in the file, if there is one: it alone reads that product."""
    source = norm.args[0]
    if op_name(norm) != "batch_norm" or not isinstance(source, fx.Node) or len(source.users) > 1:
        return None
    flat = op_name(source) == "linear" and len(node_shape(source)) == 2
    return source if (flat or is_convolution(source)) else None


@dataclass(frozen=True)
class Product:
    """A product whose weight becomes int8: where it has its weight and its bias, and which dimension has scales."""

    place: int
    axis: int
    bias: int | None


def product_of(node: fx.Node) -> Product | None:
    """What the quantizer knows of a node that multiplies by a weight, None where it leaves the weight in float."""
    known = operator_of(node)
    if known.weights is None or known.weights.axis is None:
        return None
    return Product(
        known.weights.places[0], known.weights.axis, None if known.empty_sum is None else known.empty_sum.bias
    )


def int8_terms(graph: CapturedGraph) -> dict[int, tuple[Term, ...]]:
    """What every floating parameter and buffer takes in the int8 file, by the ``id`` of the tensor.

    >>> import torch
    >>> from l0compress.graph.capture import capture
    >>> linear = capture(torch.nn.Linear(4, 3), (torch.zeros(2, 4),))
    >>> list(int8_terms(linear).values())  # a byte an element, a scale an output; the bias stays
    [((1, (0, 1)), (5, (0,))), ((4, (0,)),)]
    """
    module, stored = graph.graph_module, _Storage.of(graph.graph_module.graph)
    found: dict[int, dict[object, tuple[Term, ...]]] = {}
    for node in graph.nodes():
        tensor = attribute(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            ways = found.setdefault(id(tensor), {})
            for reading in _readings(node):
                terms = stored.terms(tensor, reading)
                # Ways of reading that need the same share it, but for biases, whose scale is that of one product.
                shared = not (terms and terms[0][0] == 4 + _INT32_SCALE)
                ways[terms if shared else (terms, reading.node.name)] = terms
    return {key: tuple(term for terms in ways.values() for term in terms) for key, ways in found.items()}


def size_of(terms: tuple[Term, ...], shape: tuple[int, ...]) -> float:
    """Bytes of a tensor of that shape.

    >>> size_of(((1, (0, 1)), (5, (0,))), (3, 4))
    27
    """
    return sum(each * prod(shape[dim] for dim in dims) for each, dims in terms)


@dataclass(frozen=True)
class _Reading:
    """A node that reads a tensor, at which of its arguments, what stands there, and whether as its transpose."""

    node: fx.Node
    place: int | str
    operand: fx.Node
    transposed: bool


def _readings(source: fx.Node, transposed: bool = False) -> Iterator[_Reading]:
    for user in source.users:
        if leads_to_weights(user):
            yield from _readings(user, transposed ^ (operator_of(user).transposes))
            continue
        for place, argument in (*enumerate(user.args), *user.kwargs.items()):
            if argument is source or (isinstance(argument, list | tuple) and source in argument):
                yield _Reading(user, place, source, transposed)


def scale_axis(source: fx.Node) -> int | None:
    """The dimension of a parameter along which the first product that reads it has one int8 scale per index.

    None where no product does whose weight becomes int8. ``source`` is the node that stands for the parameter.

    >>> import torch
    >>> from l0compress.graph.capture import capture
    >>> graph = capture(torch.nn.ConvTranspose2d(3, 4, 2), (torch.zeros(2, 3, 5, 5),))
    >>> [scale_axis(node) for node in graph.nodes() if str(node.target) == "weight"]
    [1]
    """
    products = ((reading, product_of(reading.node)) for reading in _readings(source))
    rank = len(node_shape(source))
    axes = (_axis(reading, by, rank) for reading, by in products if by is not None and reading.place == by.place)
    return next(axes, None)


def _axis(reading: _Reading, product: Product, rank: int) -> int:
    axis = product.axis % rank if rank else 0
    # Only of a matrix it is known which of its dimensions a transpose brings where.
    return 1 - axis if reading.transposed and rank == 2 else axis


@dataclass(frozen=True)
class _Storage:
    """How the quantizer stores what is read in some way; ``folded`` are the nodes that no input reaches."""

    static: bool
    folded: frozenset[fx.Node]

    @classmethod
    def of(cls, graph: fx.Graph) -> _Storage:
        folded: set[fx.Node] = set()
        for node in graph.nodes:
            sources = node.all_input_nodes
            if node.op == "call_function" and sources and all(n.op == "get_attr" or n in folded for n in sources):
                folded.add(node)
        return cls(is_static(graph), frozenset(folded))

    def terms(self, tensor: Tensor, reading: _Reading) -> tuple[Term, ...]:
        whole = tuple(range(tensor.dim()))
        node, place, name = reading.node, reading.place, op_name(reading.node)
        if node in self.folded:
            # A constant is worked out for the file: what is left of a branch that vanished.
            return () if all(user in self.folded for user in node.users) else ((tensor.element_size(), whole),)
        product = product_of(node)
        if product is not None and place == product.place:
            return (1, whole), (_SCALE, (_axis(reading, product, tensor.dim()),))
        if name == "embedding" and place == 0:
            return (1, whole), (_SCALE, ())
        if product is not None and place == product.bias:
            return self._bias(node, tensor, whole)
        if name == "batch_norm":
            return self._batch_norm(node, place, tensor, whole)
        if name in ("layer_norm", "group_norm") and place in (2, 3):
            return self._norm(reading, tensor, whole)
        if self.static and (name in _SUMS or name in _SPLIT):
            return (1, whole), (_SCALE, ())
        return ((tensor.element_size(), whole),)

    def _bias(self, node: fx.Node, tensor: Tensor, whole: tuple[int, ...]) -> tuple[Term, ...]:
        if not self.static:
            return ((tensor.element_size(), whole),)
        # A product of matrices has its bias added by an operator of its own, which knows one scale alone.
        added = op_name(node) == "linear" and len(node_shape(node)) != 2
        return ((1, whole), (_SCALE, ())) if added else ((4 + _INT32_SCALE, whole),)

    def _batch_norm(self, node: fx.Node, place: int | str, tensor: Tensor, whole: tuple[int, ...]) -> tuple[Term, ...]:
        product = folds_into(node)
        if product is not None:
            # All of it becomes the product's bias, which one of the four tensors has to stand for.
            biased = len(product.args) > 2 and product.args[2] is not None
            stands = 2 if isinstance(node.args[2], fx.Node) else 3
            return () if biased or place != stands else self._bias(product, tensor, whole)
        if self.static and place == 1:
            return (1, whole), (_SCALE, ())
        return ((4, whole), (_INT32_SCALE, ())) if self.static and place == 2 else ((tensor.element_size(), whole),)

    def _norm(self, reading: _Reading, tensor: Tensor, whole: tuple[int, ...]) -> tuple[Term, ...]:
        """Layer norms are filled up with zeros to their old size where channels go, in the file too."""
        node, place = reading.node, reading.place
        over_all = op_name(node) == "layer_norm" or node.args[1] == 1
        each, scale = (tensor.element_size(), 0)
        if self.static:
            each, scale = (4, _INT32_SCALE) if place == 3 and op_name(node) == "layer_norm" else (1, _SCALE)
        if over_all:
            return ((each * prod(node_shape(reading.operand)) + scale, ()),)
        return ((each, whole), (scale, ())) if scale else ((each, whole),)
