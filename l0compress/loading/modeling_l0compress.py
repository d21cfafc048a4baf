"""A model of ``transformers`` with narrower layers: the original architecture, built dense and then cut.

This file needs ``torch`` and ``transformers`` alone. A folder that l0compress exports has a copy of it, with one class
for each original class at its end; ``config.json`` says under ``l0compress`` what is narrower:

- ``shapes``: the shape of each parameter that is not the original's.
- ``attributes``: numbers that a module's forward reads, such as ``head_dim``.
- ``inputs``, ``outputs``: layers that read a part of their input, or whose output is filled up with zeros, because the
  original forward wants one width where there are two. Which positions these are is in the weights
  (``kept_inputs``, ``output_sources``).
- ``norms``: the original widths of layer norms, whose mean and variance are over the original width.
- ``rotary``: how many columns are left of the tables of rotary embeddings.
- ``absent``: modules that nothing reads any more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

INPUTS, OUTPUTS, COLUMNS = "kept_inputs", "output_sources", "kept_columns"


class SmallModel(nn.Module):
    """A mixin in front of a model of ``transformers``, whose layers are cut as soon as they are built."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        cut_(self, config.l0compress)


def cut_(model: Any, cuts: dict[str, Any]) -> None:
    """Give a freshly built model the shapes that ``cuts`` records; its weights are to be loaded afterwards."""
    # A base model, such as LlamaModel, is built from the record of the model with a head.
    modules = dict(model.named_modules())
    is_whole = all(name.rpartition(".")[0] in modules for name in cuts["shapes"])
    prefix = "" if is_whole else f"{model.base_model_prefix}."
    own = {kind: _within(entries, prefix) for kind, entries in cuts.items() if isinstance(entries, dict)}
    for name in own.get("absent", {}):
        _put_(model, name, nn.Identity())
    for name, shape in own.get("shapes", {}).items():
        _reshape_(model, name, shape)
    for name, values in own.get("attributes", {}).items():
        for attribute, value in values.items():
            setattr(model.get_submodule(name), attribute, value)
    for name, width in own.get("norms", {}).items():
        _put_(model, name, SmallLayerNorm(model.get_submodule(name), width))
    for name, count in own.get("inputs", {}).items():
        layer = model.get_submodule(name)
        layer.register_buffer(INPUTS, torch.empty(count, dtype=torch.long))
        layer.register_forward_pre_hook(_take_inputs)
    for name, count in own.get("outputs", {}).items():
        layer = model.get_submodule(name)
        layer.register_buffer(OUTPUTS, torch.empty(count, dtype=torch.long))
        layer.register_forward_hook(_fill_outputs)
    for name, count in own.get("rotary", {}).items():
        tables = model.get_submodule(name)
        tables.register_buffer(COLUMNS, torch.empty(count, dtype=torch.long))
        tables.register_forward_hook(_take_columns)
    model.tie_weights()


def _within(entries: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}


def _put_(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _reshape_(model: nn.Module, name: str, shape: list[int]) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, leaf)
    new = torch.zeros(shape, dtype=old.dtype, device=old.device)
    setattr(owner, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    if leaf != "weight":
        return
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = shape
    elif isinstance(owner, Conv1D):
        owner.nx, owner.nf = shape
    elif isinstance(owner, nn.Embedding):
        owner.num_embeddings, owner.embedding_dim = shape


def _take_inputs(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return args[0].index_select(-1, layer.get_buffer(INPUTS)), *args[1:]


def _fill_outputs(layer: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    # Behind the last column stands one of zeros, which every position without a column of its own takes.
    return F.pad(output, (0, 1)).index_select(-1, layer.get_buffer(OUTPUTS))


def _take_columns(tables: nn.Module, _args: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(table.index_select(-1, tables.get_buffer(COLUMNS)) for table in output)


class SmallLayerNorm(nn.LayerNorm):
    """A layer norm over ``width`` features of which those that were cut are zero, and are not there."""

    def __init__(self, whole: nn.LayerNorm, width: int) -> None:
        super().__init__(whole.weight.shape[0], whole.eps, bias=whole.bias is not None, device="meta")
        self.width, self.weight, self.bias = width, whole.weight, whole.bias

    def forward(self, input: Tensor) -> Tensor:
        kept = input.shape[-1]
        more = (0, self.width - kept)
        bias = None if self.bias is None else F.pad(self.bias, more)
        return F.layer_norm(F.pad(input, more), (self.width,), F.pad(self.weight, more), bias, self.eps)[..., :kept]
