"""What a model does in training mode that its capture in evaluation mode does not show.

Dropout inside ``scaled_dot_product_attention`` is a probability among its arguments, which models set to 0 when they
are not training. One run of the model in training mode tells what it is otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from l0compress.devices import CPU, device_of, forked_randomness
from l0compress.graph.network import TRAINING_DROPOUT, op_name

_POSITION = 4  # of dropout_p

# A model's own forward may raise anything where it was not made for training on such inputs.
USER_CODE_ERRORS = (Exception,)


@contextmanager
def _recorded() -> Iterator[list[float]]:
    """The dropout probabilities of the attention calls that are made meanwhile."""
    original, probabilities = F.scaled_dot_product_attention, []

    def recording(*args: Any, **kwargs: Any) -> Tensor:
        probabilities.append(float(args[_POSITION] if len(args) > _POSITION else kwargs.get("dropout_p", 0.0)))
        return original(*args, **kwargs)

    # A TorchFunctionMode would not look into multi_head_attention_forward.
    F.scaled_dot_product_attention = recording
    try:
        yield probabilities
    finally:
        F.scaled_dot_product_attention = original


def attention_dropout(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """The dropout probability of every call of ``scaled_dot_product_attention`` in training mode, in order.

    Neither the model's buffers nor the state of the random generator change.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.25, batch_first=True)
        >>> attention_dropout(layer, (torch.zeros(1, 3, 8),), {})
        (0.25,)
    """
    where = device_of(model) or CPU
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with _in_training_mode(model), forked_randomness(where), torch.no_grad(), _recorded() as probabilities:
        torch.func.functional_call(model, buffers, tuple(args), dict(kwargs))
    return tuple(probabilities)


@contextmanager
def _in_training_mode(model: nn.Module) -> Iterator[None]:
    before = {name: module.training for name, module in model.named_modules()}
    try:
        model.train()
        yield
    finally:
        for name, module in model.named_modules():
            module.training = before[name]


def note_attention_dropout_(module: fx.GraphModule, find: Callable[[], tuple[float, ...]]) -> None:
    """Note on every attention node what its dropout is in training mode, where it can be told.

    A model that cannot run in training mode, or runs through other attention calls then, keeps what was captured.
    """
    nodes = [node for node in module.graph.nodes if op_name(node) == "scaled_dot_product_attention"]
    if not nodes:
        return
    try:
        probabilities = find()
    except USER_CODE_ERRORS:
        return
    if len(probabilities) == len(nodes):
        for node, probability in zip(nodes, probabilities, strict=True):
            node.meta[TRAINING_DROPOUT] = probability
