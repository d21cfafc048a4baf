"""Training for the int8 file: what its quantizer will round is rounded in every step, with gradients passed through.

requires: a graph whose int8 file holds something in int8.
ensures:  a network of the same parameters, in float, that computes what the file will compute: weights of products by
          channel, tables of look-ups, and activations where the file rounds them, by the same scales and zero points.
          No random numbers and no state beside the parameters, so that a run goes on from its snapshots as ever.

The ranges of activations are those of the batch at hand. The dynamic form takes them so, too; the static one measures
them beforehand, over a few batches. What the file rounds finer, or inside of one operator, stays as it is: biases, the
weights of norms, the scores within attention, recurrent layers.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, section 3; the rounding is torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from l0compress.errors import InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.int8 import folds_into, is_static, leads_to_weights, product_of
from l0compress.graph.nodes.network import GraphNetwork, argument_at, op_name, put_argument_
from l0compress.graph.operators.record import operator_of

# Of the static form: what has inputs and outputs of int8, what passes int8 on, and what merges with what it follows.
_ROUNDED = frozenset(
    {
        *("add", "mul", "cat", "where", "sigmoid", "silu", "softmax", "_softmax", "leaky_relu", "adaptive_avg_pool2d"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "scaled_dot_product_attention"),
    }
)
_PASSING = frozenset({"max_pool1d", "max_pool2d", "max_pool3d", "dropout"})
_MERGING = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})


def round_weight(weight: Tensor, axis: int | None) -> Tensor:
    """A weight as int8 holds it: 127 steps from zero to the largest magnitude along each index of ``axis``.

    Of the same shape and dtype; the gradient is that of ``weight`` itself. One scale for all where ``axis`` is None.

    >>> round_weight(torch.tensor([[127.0, 0.4], [1.0, 0.0]]), 0)
    tensor([[127.,   0.],
            [  1.,   0.]])
    """
    wide, known = _in_float32(weight), weight.detach().abs()
    if axis is None:
        scale = _scale(known.amax().float() / 127)
        rounded = torch.fake_quantize_per_tensor_affine(wide, scale, _zeros(scale), -127, 127)
    else:
        axis %= weight.dim()
        scale = _scale(known.amax([dim for dim in range(weight.dim()) if dim != axis]).float() / 127)
        rounded = torch.fake_quantize_per_channel_affine(wide, scale, _zeros(scale), axis, -127, 127)
    return rounded.to(weight.dtype)


def round_activation(x: Tensor, like: Tensor | None = None) -> Tensor:
    """A tensor as uint8 holds it: 255 steps from the smallest to the largest value, zero being one of them.

    Of the same shape and dtype; the gradient is that of ``x`` itself. The range is that of ``like``, where it is given.

    >>> round_activation(torch.tensor([0.0, 0.4, 100.4, 255.0]))
    tensor([  0.,   0., 100., 255.])
    """
    least, most = (x if like is None else like).detach().aminmax()
    least, most = least.float().clamp_max(0), most.float().clamp_min(0)
    scale = _scale((most - least) / 255)
    zero = (-least / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(_in_float32(x), scale, zero, 0, 255).to(x.dtype)


def round_rows(rows: Tensor, table: Tensor, symmetric: bool) -> Tensor:
    """Rows that were looked up in ``table``, as its int8 form holds them; the whole table has one scale.

    >>> round_rows(torch.tensor([[1.0, 0.3]]), torch.tensor([[1.0, 0.3], [127.0, 0.0]]), True)
    tensor([[1., 0.]])
    """
    if not symmetric:
        return round_activation(rows, table)
    scale = _scale(table.detach().abs().amax().float() / 127)
    return torch.fake_quantize_per_tensor_affine(_in_float32(rows), scale, _zeros(scale), -127, 127).to(rows.dtype)


def fake_quantized(graph: CapturedGraph) -> GraphNetwork:
    """A trainable network on its own copy of the weights that rounds what the int8 file of ``graph`` will round.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> linear = nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[127.0, 0.4]]))
    >>> network = fake_quantized(capture(linear, (torch.zeros(2, 2),)))
    >>> network(torch.tensor([[0.0, 255.0], [1.0, 0.0]])).flatten()
    tensor([  0., 127.], grad_fn=<ViewBackward0>)

    Raises:
        InputError: nothing of the file will be int8.
    """
    check_quantizable(graph)
    network = graph.module()
    nodes, static = list(network.graph.nodes), is_static(network.graph)
    marked = _rounded_in_static(nodes) if static else _inputs_of_products(nodes)
    for node in nodes:
        if _has_weights(node):
            _round_weight_(network, node)
        elif _looks_up(node):
            _put_behind_(node, round_rows, node.args[0], static)
    for node in marked:
        _put_behind_(node, round_activation)
    network.recompile()
    return network


def _round_weight_(network: GraphNetwork, node: fx.Node) -> None:
    product = product_of(node)
    if product is not None:
        with network.graph.inserting_before(node):
            rounded = _called(round_weight, argument_at(node, product.place), product.axis)
        put_argument_(node, product.place, rounded)


def check_quantizable(graph: CapturedGraph) -> None:
    """Raises:
    InputError: the int8 file of ``graph`` would hold nothing in int8.
    """
    if not any(_has_weights(node) or _looks_up(node) for node in graph.nodes()):
        raise InputError(
            "quantization_aware: the int8 form of this model keeps all of its weights in float, because it has no "
            "linear layer, convolution, product with a weight or embedding.",
            fix="Leave --quantization-aware out.",
        )


def _in_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _scale(steps: Tensor) -> Tensor:
    """As the quantizer has it: where all is zero, any scale will do but zero."""
    return torch.where(steps < torch.finfo(torch.float32).tiny, 1.0, steps)


def _zeros(scale: Tensor) -> Tensor:
    return torch.zeros_like(scale, dtype=torch.int32)


def _has_weights(node: fx.Node) -> bool:
    product = product_of(node)
    return product is not None and leads_to_weights(argument_at(node, product.place))


def _looks_up(node: fx.Node) -> bool:
    return node.op == "call_function" and op_name(node) == "embedding" and leads_to_weights(node.args[0])


def _inputs_of_products(nodes: list[fx.Node]) -> list[fx.Node]:
    """What the dynamic form rounds: the activations that a weight is multiplied by."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        if _has_weights(node):
            source: Any = node.args[1 if op_name(node) == "addmm" else 0]
            if _is_float(source) and not leads_to_weights(source) and not _looks_up(source):
                found[source] = None
    return list(found)


def _rounded_in_static(nodes: list[fx.Node]) -> list[fx.Node]:
    """What the static form rounds: all that its operators of int8 take and return, but for what follows from that."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        if product_of(node) is not None or (node.op == "call_function" and op_name(node) in _ROUNDED):
            operands = [source for source in node.all_input_nodes if not leads_to_weights(source)]
            for value in (*operands, node):
                source = _merged(_origin(value))
                if _is_float(source) and not _looks_up(source):
                    found[source] = None
    return list(found)


def _origin(node: fx.Node) -> fx.Node:
    """Where values come from that are only moved about."""
    while _passes(node) and isinstance(node.args[0], fx.Node):
        if op_name(node) == "getitem" and not _passes(node.args[0]):
            break
        node = node.args[0]
    return node


def _passes(node: fx.Node) -> bool:
    known = operator_of(node)
    moves_one = known.moves and not known.joins and op_name(node) != "stack"
    return moves_one or (node.op == "call_function" and op_name(node) in _PASSING)


def _merged(node: fx.Node) -> fx.Node:
    """The last of the operators that become one with a node in the file."""
    while len(node.users) == 1:
        (user,) = node.users
        if folds_into(user) is not node and op_name(user) not in _MERGING:
            break
        node = user
    return node


def _is_float(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def _called(function: Any, first: Any, *more: Any) -> fx.Node:
    made = first.graph.call_function(function, (first, *more))
    made.meta["val"] = first.meta.get("val")
    return made


def _put_behind_(node: fx.Node, function: Any, *more: Any) -> None:
    """Let whatever reads a node read what ``function`` makes of it."""
    inputs = [other for other in node.graph.nodes if other.op == "placeholder"]
    with node.graph.inserting_after(inputs[-1] if node in inputs else node):
        rounded = _called(function, node, *more)
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
