"""A recurrent layer as an engine computes it: two products per direction, one over the whole sequence at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.layers import GATES, SparseLinear, SparseRecurrent

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class OneDirection:
    """One direction of a recurrent layer.

    Attributes:
        backward: whether it starts at the end of the sequence.
        input: the product with the input. It adds every bias that is not multiplied by anything before being added.
        recurrent: the product with the state.
    """

    backward: bool
    input: SparseLinear
    recurrent: SparseLinear


def directions_of(layer: SparseRecurrent) -> tuple[OneDirection, ...]:
    """Return the directions of a layer, in the order of its outputs.

    Example:
        >>> from scipy import sparse
        >>> weight, recurrent = (sparse.csr_array(np.ones((6, size), np.float32)) for size in (5, 3))
        >>> [each.backward for each in directions_of(SparseRecurrent("rnn_tanh", "bidirectional", weight, recurrent))]
        [False, True]
    """
    return tuple(_direction(layer, side) for side in range(layer.directions))


def _direction(layer: SparseRecurrent, side: int) -> OneDirection:
    size = GATES[layer.cell] * layer.hidden
    rows = slice(side * size, (side + 1) * size)
    to_input, to_state = _biases(layer, side, size)

    def product(weight: Any, scale: Array | None, bias: Array | None) -> SparseLinear:
        return SparseLinear(weight[rows], bias, scale=None if scale is None else scale[rows])

    return OneDirection(
        layer.direction == "reverse" or side == 1,
        product(layer.weight, layer.scale, to_input),
        product(layer.recurrent, layer.recurrent_scale, to_state),
    )


def _biases(layer: SparseRecurrent, side: int, size: int) -> tuple[Array | None, Array | None]:
    """Return what is added to the input's product, and to the state's."""
    if layer.bias is None:
        return None, None
    to_input, to_state = layer.bias.reshape(layer.directions, 2, size)[side]
    if layer.cell != "gru_reset_after":
        return to_input + to_state, None
    # The reset multiplies the state's product together with its bias.
    is_reset = np.arange(size) >= 2 * layer.hidden
    return to_input + np.where(is_reset, 0, to_state), np.where(is_reset, to_state, 0)
