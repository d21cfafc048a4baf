"""Past key values: the inputs and outputs of a decoder's ONNX file, and calls of it that do not carry any.

The names are those that Optimum and onnxruntime-genai give them. Keys and values are (batch, heads, length, width).

requires: a file whose inputs are ``input_ids``, ``attention_mask``, mostly ``position_ids``, and the past.
ensures:  that it is called like the model: what a call leaves out is what it is at the beginning of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from l0compress.export.session import OnnxSession, TensorSpec

Part = Literal["key", "value"]
PARTS: tuple[Part, Part] = ("key", "value")
IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
_PAST, _PRESENT = "past_key_values.", "present."
# A sequence is read in three parts, the last of them token by token, as long as that takes no more calls than this.
_SINGLE = 64


def past_name(layer: int, part: Part) -> str:
    """The input of a layer's keys or values so far.

    >>> past_name(0, "key")
    'past_key_values.0.key'
    """
    return f"{_PAST}{layer}.{part}"


def present_name(layer: int, part: Part) -> str:
    """The output of a layer's keys or values, those of the call included.

    >>> present_name(0, "key")
    'present.0.key'
    """
    return f"{_PRESENT}{layer}.{part}"


def takes_past(inputs: Sequence[TensorSpec]) -> bool:
    """Whether a file has past key values among its inputs."""
    return any(spec.name.startswith(_PAST) for spec in inputs)


def past_of(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What one call returned, as the past of the next.

    >>> past_of({"logits": torch.zeros(1), "present.0.key": torch.ones(1)})
    {'past_key_values.0.key': tensor([1.])}
    """
    return {_PAST + name.removeprefix(_PRESENT): value for name, value in outputs.items() if name.startswith(_PRESENT)}


def completed(given: Mapping[str, Tensor], inputs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """The inputs of a call, and of those it leaves out: an empty past, a mask of ones, positions that count on.

    Example:
        >>> from l0compress.export.session import TensorSpec
        >>> keys = TensorSpec("past_key_values.0.key", (None, 2, None, 4), torch.float32)
        >>> mask = TensorSpec("attention_mask", (None, None), torch.long)
        >>> whole = completed({"input_ids": torch.tensor([[5, 6, 7]])}, [mask, keys])
        >>> whole["attention_mask"], whole["past_key_values.0.key"].shape
        (tensor([[1, 1, 1]]), torch.Size([1, 2, 0, 4]))
    """
    if not takes_past(inputs) or IDS not in given:
        return dict(given)
    batch, length = given[IDS].shape
    past = {spec.name: _empty(spec, batch) for spec in inputs if spec.name.startswith(_PAST)}
    past |= {name: value for name, value in given.items() if name in past}
    start = next(iter(past.values())).shape[-2]
    positions = torch.arange(start, start + length).expand(batch, length)
    usual = {MASK: torch.ones(batch, start + length, dtype=torch.long), POSITIONS: positions}
    return {**past, **{spec.name: usual[spec.name] for spec in inputs if spec.name in usual}, **given}


def _empty(spec: TensorSpec, batch: int) -> Tensor:
    _, heads, _, width = spec.shape
    return torch.zeros(batch, heads or 0, 0, width or 0, dtype=spec.dtype)


class TokenByToken:
    """A file with past key values, called like the model on whole sequences, but run in pieces.

    The first third is read in one call, the second in another on top of its cache, and the rest token by token, so that
    logits that are equal show that the cache goes out and in as it should.

    Args:
        session: a file for which :func:`takes_past` is true.
    """

    def __init__(self, session: OnnxSession) -> None:
        self.session = session

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the logits of all tokens.

        Raises:
            InputError: the file lacks an input of the call, or the other way round.
        """
        from l0compress.export.session import given_tensors

        given = given_tensors([spec.name for spec in self.session.inputs], args, kwargs)
        if IDS not in given:
            return self.session(**given)
        past: dict[str, Tensor] = {}
        logits = []
        for start, end in _pieces(given[IDS].shape[1]):
            piece = {name: _cut(name, value, start, end) for name, value in given.items()}
            outputs = self.session(**piece, **past)
            logits.append(outputs[LOGITS])
            past = past_of(outputs)
        return {LOGITS: torch.cat(logits, 1)}


def _cut(name: str, value: Tensor, start: int, end: int) -> Tensor:
    return value[:, :end] if name == MASK else value[:, start:end]


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of a sequence begin and end.

    >>> [*_pieces(6)], [*_pieces(1)]
    ([(0, 2), (2, 4), (4, 5), (5, 6)], [(0, 1)])
    """
    single = max(math.ceil(2 * length / 3), length - _SINGLE)
    marks = sorted({0, math.ceil(length / 3), *range(single, length), length})
    yield from pairwise(marks)


def logits_alone(model: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A model of whose outputs only the logits are looked at."""
    return lambda *args, **kwargs: {LOGITS: model(*args, **kwargs)[LOGITS]}
