"""Recurrent operators: which nodes run them, and where the parameters of each direction lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

aten = torch.ops.aten

# How many blocks of rows, one a gate, the weights of each operator have.
NUM_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
PARAMS = 2  # the position of the list of parameters among the arguments
RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)


def is_recurrent(node: fx.Node) -> bool:
    """Whether a node runs recurrent layers over padded sequences."""
    return node.op == "call_function" and node.target in RECURRENT


@dataclass(frozen=True)
class Direction:
    """Where the parameters of one direction of one layer lie in the list of all.

    Attributes:
        weight_ih, weight_hh: positions of the weights, whose rows are blocks of one a gate.
        biases: positions of the two biases, or none.
        weight_hr: position of the projection of an LSTM's output, None without one.
    """

    weight_ih: int
    weight_hh: int
    biases: tuple[int, ...]
    weight_hr: int | None


def directions(num_params: int, *, has_biases: bool, num_layers: int, bidirectional: bool) -> tuple[Direction, ...]:
    """The parameters of every layer and direction, in PyTorch's order.

    Raises:
        ValueError: the list cannot be that of such layers.

    Source: ``torch.nn.RNNBase``.

    Examples:
        >>> directions(10, has_biases=True, num_layers=1, bidirectional=True)[1]
        Direction(weight_ih=5, weight_hh=6, biases=(7, 8), weight_hr=9)
    """
    count = num_layers * (2 if bidirectional else 1)
    plain = 4 if has_biases else 2
    if num_params not in (count * plain, count * (plain + 1)):
        raise ValueError(f"{num_params} parameters are not those of {count} recurrent layers and directions")
    each = num_params // count
    return tuple(
        Direction(
            first, first + 1, (first + 2, first + 3) if has_biases else (), first + plain if each > plain else None
        )
        for first in range(0, num_params, each)
    )
