"""Recurrent nodes as sparse layers: which of them qualify, and which of their initial states are just zeros.

Source: the ONNX operator specifications of LSTM, GRU and RNN, opsets 14 and 22.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from l0compress.export.partition.flow import Flow, attributes_of, flow_of
from l0compress.export.partition.initializers import without_unread
from l0compress_runtime.manifest import Recurrence

RECURRENT = ("LSTM", "GRU", "RNN")

_X, _W, _R, _B, _LENGTHS, _HIDDEN, _CARRIED, _PEEPHOLES = range(8)
_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
# Operators whose output contains only elements of their first input.
_REARRANGING = (
    "Cast",
    "Expand",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)


def without_zero_states(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with recurrent nodes that start from zeros by omitting the state, not by computing zeros.

    The given model is not changed.
    """
    flow = flow_of(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        if node.op_type in RECURRENT:
            names = [
                "" if place in (_HIDDEN, _CARRIED) and _is_zero(flow, name) else name
                for place, name in enumerate(node.input)
            ]
            while not names[-1]:
                names.pop()
            node.ClearField("input")
            node.input.extend(names)
    return without_unread(_without_dead(result))


def why_dense(flow: Flow, node: onnx.NodeProto) -> str | None:
    """Return why a recurrent node whose weights are sparse constants cannot be a layer; None if it can."""
    given = attributes_of(node)
    bias = _input(node, _B)
    if bias and (bias not in flow.constants or flow.constants[bias].data_type != TensorProto.FLOAT):
        return "has a bias that is not constant"
    if _input(node, _LENGTHS):
        return "takes the lengths of the sequences"
    if _input(node, _PEEPHOLES):
        return "has peepholes"
    if given.get("clip") or given.get("input_forget") or given.get("layout"):
        return "clips its sums, couples its gates or has the batch first"
    if _cell(node) is None:
        with_parameters = " with parameters" if given.get("activation_alpha") or given.get("activation_beta") else ""
        return f"has the activations {', '.join(_activations(node))}{with_parameters}"
    values = [_input(node, place) for place in (_X, _HIDDEN, _CARRIED)]
    if any(name in flow.constants for name in values) or values[0] in values[1:]:
        return "reads a sequence or a state that is a constant, or one as the other"
    if not _made(flow, node):
        return "has no output that is read"
    return None


def recurrence_of(flow: Flow, node: onnx.NodeProto) -> tuple[tuple[str, ...], tuple[str, ...], Recurrence]:
    """Return inputs, outputs and the rest of a node that may be a layer, with its constants by their graph names."""
    cell = _cell(node)
    if cell is None:
        raise ValueError(f"{node.op_type} {node.name!r} cannot be a layer")
    states = [_input(node, place) for place in ((_HIDDEN, _CARRIED) if cell == "lstm" else (_HIDDEN,))]
    inputs = tuple(dict.fromkeys((node.input[_X], *filter(None, states))))
    made = _made(flow, node)
    direction = attributes_of(node).get("direction", b"forward").decode()
    places = tuple(inputs.index(name) if name else 0 for name in states)
    recurrence = Recurrence(cell, direction, node.input[_R], places, tuple(made))
    return inputs, tuple(node.output[place] for place in made), recurrence


def weights_of(node: onnx.NodeProto) -> tuple[str, str, str | None]:
    """Return the constants of a recurrent node: the input's weight, the state's weight, and the biases."""
    return _input(node, _W), _input(node, _R), _input(node, _B) or None


def _made(flow: Flow, node: onnx.NodeProto) -> list[int]:
    """Return which of a node's outputs are read."""
    return [place for place, name in enumerate(node.output) if name and (name in flow.readers or name in flow.outputs)]


def _cell(node: onnx.NodeProto) -> str | None:
    given, activations, default = attributes_of(node), _activations(node), _DEFAULTS[node.op_type]
    sides = 2 if given.get("direction", b"forward") == b"bidirectional" else 1
    if given.get("activation_alpha") or given.get("activation_beta"):
        return None
    if node.op_type == "RNN":
        return next((f"rnn_{name}" for name in ("tanh", "relu") if activations == (name,) * sides), None)
    if activations != default * sides:
        return None
    if node.op_type == "LSTM":
        return "lstm"
    return "gru_reset_after" if given.get("linear_before_reset", 0) else "gru"


def _activations(node: onnx.NodeProto) -> tuple[str, ...]:
    given = attributes_of(node)
    sides = 2 if given.get("direction", b"forward") == b"bidirectional" else 1
    names = tuple(name.decode().lower() for name in given.get("activations", ()))
    return names or _DEFAULTS[node.op_type] * sides


def _input(node: onnx.NodeProto, place: int) -> str:
    return node.input[place] if place < len(node.input) else ""


def _is_zero(flow: Flow, name: str) -> bool:
    """Return whether a value is all zeros, whatever the inputs are."""
    while name:
        if name in flow.constants:
            return not np.any(flow.array(name))
        maker = flow.makers.get(name)
        if maker is None:
            return False
        node = flow.nodes[maker]
        if node.op_type == "ConstantOfShape":
            value = attributes_of(node).get("value")
            return value is None or not np.any(numpy_helper.to_array(value))
        if node.op_type not in _REARRANGING:
            return False
        name = node.input[0]
    return False


def _without_dead(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without nodes whose outputs nothing reads."""
    kept: list[onnx.NodeProto] = []
    flow, alive = flow_of(model), {value.name for value in model.graph.output}
    for node, reads in zip(reversed(flow.nodes), reversed(flow.reads), strict=True):
        if not alive.isdisjoint(node.output):
            kept.append(node)
            alive.update(reads)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
