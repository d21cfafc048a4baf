"""Caches of keys and values: state between two calls of a decoder, which a graph has not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """While it lasts, models of ``transformers`` make and return no cache, unless a call asks for one.

    Their configurations are the models' own again afterwards.
    """
    # A model of transformers has brought the module that its class is from.
    base: Any = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", ())
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if isinstance(part, base)}
    caching = [config for config in configs.values() if getattr(config, "use_cache", False)]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True
