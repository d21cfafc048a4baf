"""The containers that a ``.pt2`` archive takes and returns: torch rebuilds only registered kinds."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch.utils._pytree as pytree

# What Hugging Face models return; importing it registers its kinds. An archive gets no other import.
OUTPUTS_OF_TRANSFORMERS = "transformers.modeling_outputs"


def unknown_containers(program: Any) -> list[str]:
    """Return the names of unregistered kinds of containers in the JSON of a program.

    Example:
        >>> spec = '[1, {"type": "shop.Basket", "context": "null", "children_spec": []}]'
        >>> unknown_containers({"graph_module": {"module_call_graph": [{"signature": {"out_spec": spec}}]}})
        ['shop.Basket']
    """
    named = set(_kinds_in(program))
    if any(kind.startswith(f"{OUTPUTS_OF_TRANSFORMERS}.") for kind in named - _registered()):
        with suppress(ImportError):
            importlib.import_module(OUTPUTS_OF_TRANSFORMERS)
    return sorted(named - _registered())


def _registered() -> set[str]:
    return set(pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE)


def _kinds_in(value: Any) -> Iterator[str]:
    """Yield kinds of containers; specs are JSON within the JSON, under these two keys."""
    if isinstance(value, list):
        for item in value:
            yield from _kinds_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("in_spec", "out_spec") and isinstance(item, str) and item:
                yield from _kinds_of(json.loads(item))
            else:
                yield from _kinds_in(item)


def _kinds_of(spec: Any) -> Iterator[str]:
    stack = [spec]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack += part
        elif isinstance(part, dict):
            if isinstance(part.get("type"), str):
                yield part["type"]
            stack.append(part.get("children_spec"))
