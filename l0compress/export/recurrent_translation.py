"""Recurrent layers in ONNX: one ``LSTM``, ``GRU`` or ``RNN`` node per layer, for any batch and any sequence length.

requires: nodes of one layer each, as :mod:`l0compress.graph.capture.rnn_layers` leaves them.
ensures:  :data:`TRANSLATIONS`, the ``custom_translation_table`` for ``torch.onnx.export``.

Source: the ONNX operator specifications, opset 18.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.onnx_types import FLOAT
from torch import fx

from l0compress.errors import SurgeryError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import op_name
from l0compress.graph.nodes.recurrence import Direction, directions, is_recurrent

aten = torch.ops.aten
op: Any = opset18

# Where ONNX has each of PyTorch's blocks of rows: input, output, forget, cell and update, reset, hidden.
_LSTM_ORDER = (0, 3, 1, 2)
_GRU_ORDER = (1, 0, 2)


def check_translatable(graph: CapturedGraph) -> None:
    """Check LSTMs with projections: ONNX has no such operator; from zero states, another one computes the same.

    Raises:
        SurgeryError: an LSTM with projections starts from anything else.
    """
    for node in graph.nodes():
        if is_recurrent(node) and op_name(node) == "lstm" and _is_projected(node) and not _starts_from_zeros(node):
            raise SurgeryError(
                f"{node.name} is an LSTM with projections that starts from a given state, which ONNX has no operator "
                "for.",
                fix="Export it as pt2, let it start from zeros, or set proj_size=0.",
            )


def _is_projected(node: fx.Node) -> bool:
    params: Any = node.args[2]
    return _places(params, bool(node.args[3]), bool(node.args[7]))[0].weight_hr is not None


def _starts_from_zeros(node: fx.Node) -> bool:
    states: Any = node.args[1]
    return op_name(states[0]) == "new_zeros"


def _places(params: Sequence[Any], has_biases: bool, bidirectional: bool) -> tuple[Direction, ...]:
    return directions(len(params), has_biases=has_biases, num_layers=1, bidirectional=bidirectional)


def _by_gate(weight: Any, order: tuple[int, ...]) -> Any:
    """Return the blocks of rows of a weight, or of a bias, in ONNX's order."""
    if len(order) == 1:
        return weight
    blocks = op.Split(weight, axis=0, num_outputs=len(order))
    return op.Concat(*(blocks[gate] for gate in order), axis=0)


def _stacked(parts: list[Any]) -> Any:
    """Stack the weights of all directions on a new first dimension."""
    return op.Concat(*(op.Unsqueeze(part, [0]) for part in parts), axis=0)


def _arguments(params: Sequence[Any], places: tuple[Direction, ...], order: tuple[int, ...]) -> list[Any]:
    """Return weights and biases in ONNX's form. A projection is multiplied into what reads it."""
    inputs = [_by_gate(params[place.weight_ih], order) for place in places]
    hidden = [_by_gate(params[place.weight_hh], order) for place in places]
    for side, place in enumerate(places):
        if place.weight_hr is not None:
            hidden[side] = op.MatMul(hidden[side], params[place.weight_hr])
    biases = [
        op.Concat(*(_by_gate(params[bias], order) for bias in place.biases), axis=0) for place in places if place.biases
    ]
    return [_stacked(inputs), _stacked(hidden), *([_stacked(biases)] if biases else [])]


def _entered(x: Any, batch_first: bool) -> Any:
    return op.Transpose(x, perm=[1, 0, 2]) if batch_first else x


def _width(state: Any) -> int:
    return int(state.shape[2])


def _left(y: Any, batch_first: bool) -> Any:
    """Convert ``(length, directions, batch, width)`` to PyTorch's layout."""
    placed = op.Transpose(y, perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3])
    return op.Reshape(placed, [0, 0, -1])


def _lstm(
    input: FLOAT,
    hx: Sequence[FLOAT],
    params: Sequence[FLOAT],
    has_biases: bool,
    _num_layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    places = _places(params, has_biases, bidirectional)
    weights = _arguments(params, places, _LSTM_ORDER)
    projections = [params[place.weight_hr] for place in places if place.weight_hr is not None]
    y, h, c = op.LSTM(
        _entered(input, batch_first),
        *weights,
        initial_h=None if projections else hx[0],
        initial_c=hx[1],
        direction="bidirectional" if bidirectional else "forward",
        hidden_size=_width(hx[1]),
    )
    if projections:
        columns = _stacked([op.Transpose(rows, perm=[1, 0]) for rows in projections])
        y, h = op.MatMul(y, columns), op.MatMul(h, columns)
    return _left(y, batch_first), h, c


def _with_one_state(operator: Any, order: tuple[int, ...], **options: Any) -> Callable[..., Any]:
    """Return a translation for a layer that carries a single state, its hidden one.

    Args:
        operator: of ONNX.
        order: where ONNX has each block of rows.
        options: further attributes of the operator; a list is repeated for the second direction.
    """

    def translate(
        input: FLOAT,
        hx: FLOAT,
        params: Sequence[FLOAT],
        has_biases: bool,
        _num_layers: int,
        _dropout: float,
        _train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        y, h = operator(
            _entered(input, batch_first),
            *_arguments(params, _places(params, has_biases, bidirectional), order),
            initial_h=hx,
            direction="bidirectional" if bidirectional else "forward",
            hidden_size=_width(hx),
            **{
                name: option * (1 + bidirectional) if isinstance(option, list) else option
                for name, option in options.items()
            },
        )
        return _left(y, batch_first), h

    return translate


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _with_one_state(op.GRU, _GRU_ORDER, linear_before_reset=1),
    aten.rnn_tanh.input: _with_one_state(op.RNN, (0,), activations=["Tanh"]),
    aten.rnn_relu.input: _with_one_state(op.RNN, (0,), activations=["Relu"]),
}
