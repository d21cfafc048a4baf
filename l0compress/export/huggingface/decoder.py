"""A causal language model of ``transformers`` as a graph whose cache of keys and values goes in and comes out.

requires: a model that generates by itself, with keys and values of every layer in its cache.
ensures:  a captured graph with free batch, sequence and past lengths, the past may be empty; heads and widths are each
          layer's own; names for its ONNX file as Optimum and onnxruntime-genai have them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from l0compress.errors import NOTHING_WRITTEN, InputError
from l0compress.export.past import IDS, LOGITS, MASK, PARTS, POSITIONS, past_name, present_name
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.loading.references import FOREIGN_ERRORS, first_line

# Sizes that differ from each other and from 0 and 1, or torch.export takes them for one, or for fixed.
_BATCH, _LENGTH, _PAST_LENGTH = 2, 3, 5
_AXES = {"length": "sequence_length", "length_2": "total_sequence_length", "length_3": "past_sequence_length"}
Layer = tuple[Tensor, Tensor]


class WithPast(nn.Module):
    """A causal language model with tensors for its cache: keys and values of each layer go in, longer ones come out.

    ``position_ids`` are given only to models that take them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.keyword = cache_keyword(model)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: Sequence[Layer], position_ids: Tensor | None = None
    ) -> dict[str, Any]:
        # Without a configuration every layer keeps all of it; what a sliding window hides is the mask's business.
        cache: Any = _transformers("cache_utils").DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        more = {} if position_ids is None else {POSITIONS: position_ids}
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **{self.keyword: cache}, **more
        )
        return {LOGITS: outputs.logits, "present": [(layer.keys, layer.values) for layer in cache.layers]}


@dataclass(frozen=True, eq=False)
class Decoder:
    """A graph with past key values.

    Attributes:
        graph: what was captured.
        names: the names of its ONNX file's inputs, outputs and free sizes, by those of the graph.
        num_layers: layers in the cache.
    """

    graph: CapturedGraph
    names: dict[str, str]
    num_layers: int


def capture_decoder(model: nn.Module) -> Decoder:
    """Capture a causal language model with its cache.

    Raises:
        InputError: it is none, or keeps no keys and values.
        CaptureError: torch.export cannot capture it.

    Example:
        >>> import transformers
        >>> sizes = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 9}
        >>> decoder = capture_decoder(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval())
        >>> decoder.names["present_0_0"], decoder.num_layers
        ('present.0.key', 1)
    """
    past = _example_past(model)
    names, batch, length, total = dict(_AXES), Dim("batch"), Dim("length"), Dim.AUTO
    ids = torch.ones(_BATCH, _LENGTH, dtype=torch.long)
    kwargs: dict[str, Any] = {IDS: ids, MASK: torch.ones(_BATCH, _PAST_LENGTH + _LENGTH, dtype=torch.long)}
    free: dict[str, Any] = {IDS: {0: batch, 1: length}, MASK: {0: batch, 1: total}}
    if POSITIONS in inspect.signature(model.forward).parameters:
        kwargs[POSITIONS] = torch.arange(_PAST_LENGTH, _PAST_LENGTH + _LENGTH).repeat(_BATCH, 1)
        free[POSITIONS] = {0: batch, 1: length}
    sizes = {0: batch, 2: Dim("past")}
    graph = capture(
        WithPast(model).eval(),
        (),
        {**kwargs, "past": past},
        dynamic={**free, "past": [(sizes, sizes) for _ in past]},
    )
    for layer in range(len(past)):
        for at, part in enumerate(PARTS):
            names[f"past_{layer}_{at}"] = past_name(layer, part)
            names[f"present_{layer}_{at}"] = present_name(layer, part)
    return Decoder(graph, names, len(past))


def check_decoder(model: nn.Module, name: str) -> None:
    """Refuse what has no past key values.

    Raises:
        InputError: the model generates no text by itself, or its cache is no keys and values.
    """
    # By name, since a type checker takes most of a minute for what the package offers.
    config: Any = getattr(model, "config", None)
    generates = isinstance(model, _transformers("generation").GenerationMixin)
    if not generates or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} holds a {type(model).__name__}, which is no causal language model: it has no past key values.",
            fix="Omit --with-past (in Python call export_onnx).",
            assurance=NOTHING_WRITTEN,
        )
    _example_past(model)


def cache_keyword(model: nn.Module) -> str:
    """What the forward of a model calls its cache: ``cache`` in newer versions of transformers."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), "past_key_values")


def _example_past(model: nn.Module) -> list[Layer]:
    """Keys and values of each layer after a few tokens.

    Raises:
        InputError: the model keeps something else from token to token, or nothing.
    """
    layer_type = _transformers("cache_utils").DynamicLayer
    ids = torch.ones(_BATCH, _PAST_LENGTH, dtype=torch.long)
    try:
        with torch.no_grad():
            outputs = model(input_ids=ids, use_cache=True)
        cache = getattr(outputs, "cache", None) or getattr(outputs, "past_key_values", None)
        layers = [*getattr(cache, "layers", ())]
        # In earlier versions of transformers a state that is no cache has a place of its own.
        keeps_other = layers or getattr(outputs, "cache_params", None) is not None
        why = "keeps another state" if keeps_other else "keeps nothing"
    except FOREIGN_ERRORS as reason:
        layers, why = [], f"cannot be run on tokens alone ({first_line(reason)})"
    if not layers or not all(isinstance(layer, layer_type) and layer.is_initialized for layer in layers):
        raise InputError(
            f"{type(model).__name__} has no past key values: from token to token it {why}.",
            fix="Omit --with-past (in Python call export_onnx).",
            assurance=NOTHING_WRITTEN,
        )
    return [(layer.keys.detach(), layer.values.detach()) for layer in layers]


def _transformers(module: str) -> Any:
    return importlib.import_module(f"transformers.{module}")
