"""Recurrent layers in a graph: one operator per layer, over sequences of any length.

``torch.export`` keeps an LSTM, a GRU or an Elman network as one operator, but infers its shapes by unrolling it, which
fixes the length of the sequence. :func:`any_length` infers them without. A stack of layers is one operator too, whose
layers share one width; :func:`by_layer_` splits it, so that each layer has a width of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._C import DispatchKey
from torch._decomp import decomposition_table

from l0compress.graph.nodes.constant_index import is_written
from l0compress.graph.nodes.network import op_name
from l0compress.graph.nodes.recurrence import RECURRENT, is_recurrent

aten = torch.ops.aten

_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd, DispatchKey.Meta)
_KEEPS_ZEROS = ("to", "_to_copy", "contiguous", "clone", "alias", "detach", "float", "lift_fresh_copy")


@contextmanager
def any_length() -> Iterator[None]:
    """While it lasts, tracing infers the shapes of recurrent operators without unrolling them."""
    before = {found: dict(found.py_kernels) for found in RECURRENT}
    # A graph that is traced again has its shapes from here, whatever the operators' own kernels are.
    unrolled = {found: decomposition_table[found] for found in RECURRENT if found in decomposition_table}
    try:
        for found in RECURRENT:
            inferred: Callable[..., Any] = _lstm_shapes if found is aten.lstm.input else _shapes
            _use_(found, {**before[found], **dict.fromkeys(_KEYS, inferred)})
            decomposition_table[found] = inferred
        yield
    finally:
        for found, kernels in before.items():
            _use_(found, kernels)
            decomposition_table.pop(found)
        decomposition_table.update(unrolled)


def _use_(found: Any, kernels: dict[Any, Any]) -> None:
    found.py_kernels.clear()
    found.py_kernels.update(kernels)
    found._dispatch_cache.clear()


def _shapes(x: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    bidirectional = rest[5]
    out = x.new_empty((x.shape[0], x.shape[1], hx.shape[2] * (2 if bidirectional else 1)))
    return out, torch.empty_like(hx)


def _lstm_shapes(x: Tensor, hx: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (*_shapes(x, hx[0], *rest), torch.empty_like(hx[1]))


def by_layer_(module: fx.GraphModule) -> bool:
    """Split stacks of recurrent layers into one node a layer, and let initial zeros follow their input.

    Dropout between the layers becomes a node of its own.

    Returns:
        Whether anything was changed; the new nodes then still lack shapes.
    """
    found = [node for node in module.graph.nodes if is_recurrent(node)]
    for node in found:
        with module.graph.inserting_before(node):
            results = _layers(node)
        _replace_(node, results)
    return bool(found)


def _layers(node: fx.Node) -> tuple[fx.Node, list[list[fx.Node]]]:
    """The layers of a node one after the other: the output, and each final state layer by layer."""
    taken, states, params, has_biases, num_layers, dropout, train, bidirectional, batch_first = _arguments(node)
    each, sides = len(params) // num_layers, 2 if bidirectional else 1
    finals: list[list[fx.Node]] = [[] for _ in states]
    for layer in range(num_layers):
        if layer and dropout:
            taken = _call(node, aten.dropout.default, taken, dropout, train)
        initial = [_initial(node, state, layer * sides, sides) for state in states]
        hx = initial if node.target is aten.lstm.input else initial[0]
        own = list(params[layer * each : (layer + 1) * each])
        made = _call(node, node.target, taken, hx, own, has_biases, 1, 0.0, train, bidirectional, batch_first)
        taken = _call(node, operator.getitem, made, 0)
        for number, final in enumerate(finals):
            final.append(_call(node, operator.getitem, made, number + 1))
    return taken, finals


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    x, hx, *rest = node.args
    return (x, list(hx) if isinstance(hx, (list, tuple)) else [hx], *rest)


def _initial(node: fx.Node, state: fx.Node, first: int, count: int) -> fx.Node:
    """A layer's part of an initial state; zeros are made anew, so that they belong to this layer alone."""
    source = state
    while op_name(source) in _KEEPS_ZEROS:
        source = source.all_input_nodes[0]
    if op_name(source) in ("zeros", "new_zeros") and not is_written(source):
        sizes: Any = source.args[0 if op_name(source) == "zeros" else 1]
        return _call(node, aten.new_zeros.default, node.args[0], [count, *sizes[1:]])
    return _call(node, aten.slice.Tensor, state, 0, first, first + count)


def _call(origin: fx.Node, target: Any, *args: Any) -> fx.Node:
    made = origin.graph.call_function(target, args)
    made.meta = {key: value for key, value in origin.meta.items() if key != "val"}
    return made


def _replace_(node: fx.Node, results: tuple[fx.Node, list[list[fx.Node]]]) -> None:
    output, finals = results
    for user in list(node.users):
        number: Any = user.args[1]
        if number == 0:
            user.replace_all_uses_with(output)
        else:
            _replace_state_(user, finals[number - 1])
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _replace_state_(state: fx.Node, layers: list[fx.Node]) -> None:
    """Where one layer's final state is picked, it comes from that layer; else the layers are joined again."""
    if len(layers) == 1:
        state.replace_all_uses_with(layers[0])
        return
    count = state.meta["val"].shape[0]
    sides = count // len(layers)
    for user in [] if is_written(state) else list(state.users):
        if op_name(user) == "select" and user.args[1] == 0 and isinstance(user.args[2], int):
            layer, side = divmod(user.args[2] % count, sides)
            user.args = (layers[layer], 0, side)
    if state.users:
        with state.graph.inserting_before(state):
            state.replace_all_uses_with(_call(state, aten.cat.default, layers, 0))
