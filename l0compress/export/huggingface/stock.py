"""The settings with which a class of ``transformers`` itself has the widths of a cut model, where there are any.

Widths that are the same in all layers are fields of a configuration. Those that are not go into ``per_layer_config``
(transformers#45333), which every configuration takes from transformers 5.15 on; whether a model's class reads it is
found out by building it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from l0compress.export.huggingface.layouts import Layouts
from l0compress.export.huggingface.record import CutModel

# What has to be put in place around the original forward, which no setting says.
_BEYOND = ("inputs", "outputs", "norms", "rotary", "absent")
_SIZES = ("hidden_size", "intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
_HEADS = {"num_attention_heads": "heads", "num_key_value_heads": "key and value heads"}
_EPSILON = "rms_norm_eps"
_RESIDUAL = "hidden_size"


def stock_settings(
    model: nn.Module, config: Mapping[str, Any], cut: CutModel, layouts: Layouts
) -> dict[str, Any] | None:
    """The source's ``config.json`` with the widths of ``cut``; None where no field can say them.

    It says nothing of whether the class builds what is meant.
    """
    if any(cut.record[kind] for kind in _BEYOND) or any(
        before != after for note in layouts.notes.values() for name, (before, after) in note.items() if "width" in name
    ):
        return None
    settings: Any = getattr(model, "config", None)
    names = {field: settings.attribute_map.get(field, field) for field in (*_SIZES, *_HEADS, "head_dim")}
    found = _sizes(model, cut, layouts, {field: getattr(settings, field, None) for field in _SIZES}) | _heads(layouts)
    changed: dict[str, Any] = {}
    layers: dict[str, dict[str, Any]] = {}
    for field, by_layer in found.items():
        if len(set(by_layer.values())) == 1:
            changed[names[field]] = next(iter(by_layer.values()))
        elif None in by_layer:
            return None
        else:
            for layer, size in by_layer.items():
                layers.setdefault(str(layer), {})[names[field]] = size
    if "hidden_size" in found or any(field in found for field in _HEADS):
        # Otherwise it would follow from the two.
        changed["head_dim"] = next(iter({note["width of values"][0] for note in layouts.notes.values()}), None)
    epsilons = {own[key] for own in cut.record["attributes"].values() for key in own if "eps" in key}
    if len(epsilons) == 1:
        changed[_EPSILON] = epsilons.pop()
    return {**config, **changed, **({"per_layer_config": layers} if layers else {})}


def _sizes(
    model: nn.Module, cut: CutModel, layouts: Layouts, dense: Mapping[str, Any]
) -> dict[str, dict[int | None, int]]:
    """The small sizes that stand for a dense one, by layer; None stands for what is in no layer.

    The width of the residual stream is that of the embeddings; what has the same size in attention are heads.
    """
    whole = dict(model.named_parameters())
    embedding = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    found: dict[str, dict[int | None, int]] = {}
    for name, tensor in cut.tensors.items():
        if name not in whole:
            continue
        is_table = embedding is not None and whole[name] is embedding.weight
        inside = any(name.startswith(f"{attention}.") for attention in layouts.notes)
        for field, size in dense.items():
            if is_table if field == _RESIDUAL else not inside and size != dense[_RESIDUAL]:
                for before, after in zip(whole[name].shape, tensor.shape, strict=True):
                    if before == size and before != after:
                        found.setdefault(field, {})[_layer(name)] = after
    return found


def _heads(layouts: Layouts) -> dict[str, dict[int | None, int]]:
    found: dict[str, dict[int | None, int]] = {}
    for module, note in layouts.notes.items():
        for field, name in _HEADS.items():
            if any(other[name][0] != other[name][1] for other in layouts.notes.values()):
                found.setdefault(field, {})[_layer(module)] = note[name][1]
    return found


def _layer(name: str) -> int | None:
    match = re.search(r"\.(\d+)\.", f".{name}.")
    return int(match[1]) if match else None


def builds(architecture: Any, settings: Mapping[str, Any], cut: CutModel) -> bool:
    """Whether a class of transformers, given the settings, has exactly the weights of ``cut``."""
    # By name, since a type checker takes most of a minute for what the package offers.
    transformers: Any = importlib.import_module("transformers")
    kind = str(settings.get("model_type"))
    try:
        config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in settings.items() if k != "model_type"})
        with torch.device("meta"):
            model = architecture._from_config(config)
    except (AttributeError, RuntimeError, TypeError, ValueError, ZeroDivisionError):
        return False
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    wanted = {name: tuple(tensor.shape) for name, tensor in cut.tensors.items() if name in own}
    return own == wanted
