"""The code of an exported folder: a copy of the module that builds narrow models, and a class for each original one."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from l0compress.loading import modeling_l0compress
from l0compress.loading.huggingface import PREFIX


def auto_classes(architecture: type) -> dict[str, str]:
    """The ``Auto`` classes of transformers that an architecture, or its base model, is of, and the original class.

    >>> import transformers
    >>> found = auto_classes(transformers.BertForSequenceClassification)
    >>> found["AutoModel"], found["AutoModelForSequenceClassification"]
    ('BertModel', 'BertForSequenceClassification')
    """
    # By name, since a type checker takes most of a minute for what the package offers.
    transformers: Any = importlib.import_module("transformers")
    found = {}
    for name in dir(transformers):
        # Whatever an optional library of transformers would have to bring is no Auto class of a model here.
        if not name.startswith("AutoModel"):
            continue
        mapping = getattr(getattr(transformers, name), "_model_mapping", None)
        config: Any = getattr(architecture, "config_class", None)
        if mapping is None or config not in mapping:
            continue
        given = mapping[config]
        for model in given if isinstance(given, tuple) else (given,):
            if model is architecture or name == "AutoModel":
                found[name] = model.__name__
    return found


def code_of(originals: list[str]) -> str:
    """The text of the module: that of :mod:`l0compress.loading.modeling_l0compress`, and a class for each original."""
    source = inspect.getsource(modeling_l0compress)
    imports = f"from transformers import {', '.join(originals)}\n"
    place = "from transformers.pytorch_utils import Conv1D\n"
    classes = [
        f"\n\nclass {PREFIX}{name}(SmallModel, {name}):\n"
        f'    """:class:`transformers.{name}` with the widths in ``config.json``."""\n'
        for name in originals
    ]
    return source.replace(place, imports + place, 1) + "".join(classes)
