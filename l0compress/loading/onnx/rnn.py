"""Recurrent layers, as PyTorch's own operators over weights in PyTorch's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l0compress.loading.onnx.registry import Prepare, operator
from l0compress.loading.onnx.values import Refusal

# Blocks of rows, one per gate: where PyTorch's i, f, g, o are in ONNX's i, o, f, c; its r, z, n in z, r, h.
_ORDER = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2), "rnn": (0,)}
_DEFAULTS = {"lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh"), "rnn": ("Tanh",)}
_WEIGHT, _RECURRENCE, _BIAS = 1, 2, 3
_SIDES = ("", "_reverse")


def _prepared(cell: str) -> Prepare:
    """Return a function that turns W, R and B into one weight per direction, with rows in PyTorch's order."""

    def prepare(inputs: Sequence[Tensor | None], attributes: dict[str, Any]) -> dict[int, list[tuple[str, Tensor]]]:
        hidden = attributes.get("hidden_size")
        made: dict[int, list[tuple[str, Tensor]]] = {}
        for position in (_WEIGHT, _RECURRENCE):
            weight = inputs[position]
            if weight is None:
                raise Refusal("its weights are computed, not kept in the file")
            made[position] = [(f"l0{_SIDES[d]}", _rows(part, cell, hidden)) for d, part in enumerate(weight)]
        bias = inputs[_BIAS] if len(inputs) > _BIAS else None
        if bias is not None:
            made[_BIAS] = [
                (f"{kind}_l0{_SIDES[d]}", _rows(half, cell, hidden))
                for d, part in enumerate(bias)
                for kind, half in zip(("ih", "hh"), part.chunk(2), strict=True)
            ]
        return made

    return prepare


def _rows(weight: Tensor, cell: str, hidden: int | None) -> Tensor:
    order = _ORDER[cell]
    if hidden is not None and len(weight) != hidden * len(order):
        raise Refusal(f"it has {len(weight)} rows of weights for {hidden} units")
    blocks = weight.chunk(len(order))
    return torch.cat([blocks[place] for place in order]).contiguous()


def _check(cell: str, direction: str, activations: tuple[str, ...] | None, refused: dict[str, Any]) -> int:
    """Return the number of directions.

    Raises:
        Refusal: PyTorch has no such layer.
    """
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Refusal(f"its direction is {direction!r}")
    sides = 2 if direction == "bidirectional" else 1
    if activations is not None and tuple(activations) != _DEFAULTS[cell] * sides:
        raise Refusal(f"its activations are {', '.join(activations)}, which PyTorch's layer does not have")
    for name, value in refused.items():
        if value is not None:
            raise Refusal(f"it has {name}, which PyTorch's layer does not have")
    return sides


def _weights(w: Any, r: Any, b: Any) -> list[Tensor]:
    """Return the list of weights that PyTorch's operators take."""
    if b is None:
        return [part for pair in zip(w, r, strict=True) for part in pair]
    return [part for d in range(len(w)) for part in (w[d], r[d], b[2 * d], b[2 * d + 1])]


def _run(
    x: Tensor, states: list[Tensor | None], weights: list[Tensor], call: Callable[..., Any], how: tuple[str, int]
) -> tuple[Tensor, ...]:
    """Run a layer over sequences: returns the outputs with a dimension of directions, and the last states.

    Args:
        how: the direction and ONNX's layout, 1 for batch first.
    """
    (direction, layout), sides = how, 2 if how[0] == "bidirectional" else 1
    source = x.transpose(0, 1) if layout else x
    if direction == "reverse":
        source = source.flip(0)
    hidden = weights[1].shape[1]
    initial = [
        source.new_zeros(sides, source.shape[1], hidden)
        if state is None
        else (state.transpose(0, 1) if layout else state)
        for state in states
    ]
    has_biases = len(weights) > 2 * sides
    hx = initial if len(initial) > 1 else initial[0]
    out, *finals = call(source, hx, weights, has_biases, 1, 0.0, False, sides == 2, False)
    if direction == "reverse":
        out = out.flip(0)
    parted = out.unflatten(-1, (sides, hidden)).transpose(1, 2) if sides == 2 else out.unsqueeze(1)
    if layout:
        return parted.permute(2, 0, 1, 3), *(final.transpose(0, 1) for final in finals)
    return parted, *finals


@operator("LSTM", many=True, prepare=_prepared("lstm"))
def lstm(
    x: Tensor,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    peephole: Any = None,
    *,
    activation_alpha: Any = None,
    activation_beta: Any = None,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    del hidden_size
    refused = {"peepholes": peephole, "a length per sequence": lengths, "clipped sums": clip}
    refused |= {
        "parameters of its activations": activation_alpha or activation_beta,
        "joined gates": input_forget or None,
    }
    _check("lstm", direction, activations, refused)
    return _run(x, [h, c], _weights(w, r, b), torch.lstm, (direction, layout))


@operator("GRU", many=True, prepare=_prepared("gru"))
def gru(
    x: Tensor,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    h: Tensor | None = None,
    *,
    activation_alpha: Any = None,
    activation_beta: Any = None,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    del hidden_size
    refused = {"a length per sequence": lengths, "clipped sums": clip}
    refused |= {"parameters of its activations": activation_alpha or activation_beta}
    refused |= {"a reset before the product (linear_before_reset=0)": None if linear_before_reset else True}
    _check("gru", direction, activations, refused)
    return _run(x, [h], _weights(w, r, b), torch.gru, (direction, layout))


@operator("RNN", many=True, prepare=_prepared("rnn"))
def rnn(
    x: Tensor,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    h: Tensor | None = None,
    *,
    activation_alpha: Any = None,
    activation_beta: Any = None,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    del hidden_size, activation_alpha, activation_beta
    linear = activations is not None and set(activations) == {"Relu"}
    refused = {"a length per sequence": lengths, "clipped sums": clip}
    _check("rnn", direction, None if linear else activations, refused)
    return _run(x, [h], _weights(w, r, b), torch.rnn_relu if linear else torch.rnn_tanh, (direction, layout))
