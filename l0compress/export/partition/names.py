"""Names of layers and constants for reports: as in the user's model, as far as the graph tells."""

from __future__ import annotations

import re

import onnx

from l0compress.export.partition.flow import Flow
from l0compress.export.partition.initializers import parameter_of


def layer_name(flow: Flow, weight: str, bias: str | None, output: str) -> str:
    """Return a layer's name: the user's if a parameter still has it, or else that of the value that it produces."""
    for name in (weight, bias):
        parameter = "" if name is None else parameter_of(flow, name)
        if "." in parameter:
            return parameter.rpartition(".")[0]
    return output


def recurrent_name(parameters: list[str], node: onnx.NodeProto) -> str | None:
    """Return ``lstm.l1`` for ``lstm.weight_ih_l1``: PyTorch's modules have several layers, each of which is a node."""
    for parameter in parameters:
        found = re.fullmatch(r"(?:(.+)\.)?(?:weight|bias)_[ih]h_(l\d+)(?:_reverse)?", parameter)
        if found is not None:
            return f"{found[1] or node.op_type.lower()}.{found[2]}"
    return None


def spoken(flow: Flow, name: str, node: onnx.NodeProto) -> str:
    """Return the name of a constant that stays dense: the user's parameter, or the node's output."""
    parameter = parameter_of(flow, name)
    return parameter if "." in parameter else next(filter(None, node.output), name)
