"""Recurrent cells, one step of an LSTM, a GRU or an Elman network, as the linear layers and products inside."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

aten = torch.ops.aten
add, sub, mul = aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor
sigmoid, tanh, linear = aten.sigmoid.default, aten.tanh.default, aten.linear.default


def open_cells_(module: fx.GraphModule) -> bool:
    """Replace every recurrent cell by the operators it consists of, for which there are rules.

    Returns:
        Whether anything was changed; the new nodes then still lack shapes.

    Source: the equations in the documentation of ``torch.nn.LSTMCell``, ``GRUCell`` and ``RNNCell``.
    """
    found = [node for node in module.graph.nodes if node.op == "call_function" and node.target in _CELLS]
    tracer = GraphAppendingTracer(module.graph)
    for node in found:
        operands: Any = pytree.tree_map_only(fx.Node, lambda arg: fx.Proxy(arg, tracer), node.args)
        with module.graph.inserting_before(node):
            results = _CELLS[node.target](*operands, *[None] * (6 - len(operands)))
        made = results if isinstance(results, tuple) else (results,)
        _describe_(node, made)
        if isinstance(results, tuple):
            for user in list(node.users):
                number: Any = user.args[1]
                user.replace_all_uses_with(made[number].node)
                module.graph.erase_node(user)
        else:
            node.replace_all_uses_with(made[0].node)
        module.graph.erase_node(node)
    return bool(found)


def _describe_(cell: fx.Node, results: tuple[fx.Proxy, ...]) -> None:
    """The new nodes come from the line of the user's source that the cell came from."""
    notes = {key: value for key, value in cell.meta.items() if key != "val"}
    pending = [result.node for result in results]
    while pending:
        node = pending.pop()
        if not node.meta and node.op == "call_function":
            node.meta = dict(notes)
            pending.extend(node.all_input_nodes)


def _parts(x: Any, weight: Any, bias: Any, count: int) -> list[Any]:
    chunks = aten.chunk.default(linear(x, weight, bias), count, 1)
    return [operator.getitem(chunks, number) for number in range(count)]


def _lstm(x: Any, states: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> tuple[Any, Any]:
    h, c = states
    sums = [add(a, b) for a, b in zip(_parts(x, w_ih, b_ih, 4), _parts(h, w_hh, b_hh, 4), strict=True)]
    i, f, o = (sigmoid(sums[gate]) for gate in (0, 1, 3))
    cell = add(mul(f, c), mul(i, tanh(sums[2])))
    return mul(o, tanh(cell)), cell


def _gru(x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    inputs, hidden = _parts(x, w_ih, b_ih, 3), _parts(h, w_hh, b_hh, 3)
    r, z = (sigmoid(add(a, b)) for a, b in zip(inputs[:2], hidden[:2], strict=True))
    n = tanh(add(inputs[2], mul(r, hidden[2])))
    return add(n, mul(z, sub(h, n)))


def _elman(activation: Callable[[Any], Any]) -> Callable[..., Any]:
    def step(x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        return activation(add(linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)))

    return step


_CELLS: dict[Any, Callable[..., Any]] = {
    aten.lstm_cell.default: _lstm,
    aten.gru_cell.default: _gru,
    aten.rnn_tanh_cell.default: _elman(tanh),
    aten.rnn_relu_cell.default: _elman(aten.relu.default),
}
