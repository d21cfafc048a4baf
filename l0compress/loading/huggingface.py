"""Hugging Face ``transformers`` folders: config and weights, but none of the folder's own code."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from l0compress.errors import ModelError
from l0compress.loading.references import FOREIGN_ERRORS, first_line, import_extra, without_broken
from l0compress.loading.weights import read_weights, unwrap

CONFIG = "config.json"
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
BELOW = "0_Transformer"
# Where config.json of a cut model says what is narrower, and how its class is called.
RECORD, PREFIX = "l0compress", "Small"
NAMED = 3


def load_folder(folder: Path, *, architecture: type | None = None) -> nn.Module:
    """Build the model that ``config.json`` describes, head included, and fill it with the folder's weights.

    The class is the first of ``architectures`` in the config and must be one of ``transformers`` itself: code in the
    folder (``auto_map``) is never run. A model that was cut and exported by this package is built by the package's own
    copy of that code. Weights are read from ``model.safetensors`` or its shards, or with ``weights_only`` from
    ``pytorch_model.bin``. ``architecture`` is the class where it is known already.

    Raises:
        ModelError: a file is missing or damaged, the class is unknown, or weights are missing.
    """
    folder = folder / transformer_folder(folder)
    config = _read_json(folder / CONFIG, folder)
    with without_broken("torchvision"):
        transformers = import_extra("transformers", extra="transformers", purpose="A model folder", error=ModelError)
        name = (config.get("architectures") or [None])[0]
        if architecture is None and isinstance(config.get(RECORD), dict):
            return _model(transformers, str(name).removeprefix(PREFIX), folder, cut=True)
        return (
            _model(transformers, name, folder) if architecture is None else _filled(transformers, architecture, folder)
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a folder as it is.

    Raises:
        ModelError: it is missing or damaged.
    """
    return _read_json(folder / transformer_folder(folder) / CONFIG, folder)


def transformer_folder(folder: Path) -> str:
    """Return where in a folder the transformer is: at its top, or in one below, as older sentence-transformers have it.

    >>> transformer_folder(Path("no such folder"))
    ''
    """
    is_below = not (folder / CONFIG).is_file() and (folder / BELOW / CONFIG).is_file()
    return BELOW if is_below else ""


@cache
def small_class(architecture: type) -> type:
    """Return the class of an architecture's models whose layers are narrower, as their configuration records."""
    from l0compress.loading.modeling_l0compress import SmallModel

    return type(f"{PREFIX}{architecture.__name__}", (SmallModel, architecture), {"__module__": __name__})


def _model(transformers: Any, architecture: Any, folder: Path, *, cut: bool = False) -> nn.Module:
    build = getattr(transformers, str(architecture), None)
    if not (isinstance(build, type) and issubclass(build, transformers.PreTrainedModel)):
        raise ModelError(
            f"Model {str(folder)!r}: config.json names the architecture {architecture!r}, which is not a model of "
            f"transformers {transformers.__version__}.",
            fix=(
                "Name one in 'architectures', such as BertForSequenceClassification, or load the weights with "
                "--factory."
            ),
            assurance="Nothing was loaded; code in the folder is never run.",
        )
    return _filled(transformers, small_class(build) if cut else build, folder)


def _filled(transformers: Any, build: Any, folder: Path) -> nn.Module:
    # The weights are read here, by readers that run no code, and passed on by name.
    weights = _weights(folder)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = build.from_pretrained(
            None, config=_settings(transformers, folder), state_dict=weights, output_loading_info=True
        )
    except FOREIGN_ERRORS as reason:
        raise ModelError(
            f"Cannot read model {str(folder)!r} ({first_line(reason)}).", fix="Check config.json."
        ) from reason
    finally:
        logging.disable(disabled)
        transformers.utils.logging.enable_progress_bar()
    _check(report, folder, build.__name__)
    return model.float().eval()


def _settings(transformers: Any, folder: Path) -> Any:
    settings = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    # A key-value cache is state between calls, which a graph does not have.
    settings.use_cache = False
    return settings


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in (SAFE, PICKLED):
        index = folder / f"{name}{INDEX}"
        if index.exists():
            shards = sorted(set(_read_json(index, folder).get("weight_map", {}).values()))
            return {key: value for shard in shards for key, value in _shard(folder, shard).items()}
        if (folder / name).exists():
            return _shard(folder, name)
    raise ModelError(
        f"Model {str(folder)!r} has no weights: neither {SAFE} nor {PICKLED} is there.",
        fix="Download the folder again, or save the model with save_pretrained.",
    )


def _shard(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / str(name)
    if path.parent != folder or not path.is_file():
        raise ModelError(
            f"Model {str(folder)!r}: its part {str(name)!r} is missing or outside the folder.",
            fix="Download the folder again.",
        )
    weights = unwrap(read_weights(path))
    if weights is None:
        raise ModelError(f"Model {str(folder)!r}: {name!r} holds no weights.", fix="Download the folder again.")
    return weights


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as reason:
        raise ModelError(
            f"Cannot read model {str(folder)!r}: {path.name} is missing.",
            fix="Name a model folder of Hugging Face transformers, with config.json and model.safetensors.",
        ) from reason
    except (OSError, ValueError, RecursionError) as reason:
        raise ModelError(
            f"Cannot read model {str(folder)!r}: {path.name} is damaged ({first_line(reason)}).",
            fix="Download the folder again.",
        ) from reason
    if not isinstance(value, dict):
        raise ModelError(
            f"Cannot read model {str(folder)!r}: {path.name} is not a JSON object.", fix="Download the folder again."
        )
    return value


def _check(report: dict[str, Any], folder: Path, architecture: str) -> None:
    """Refuse missing weights: a randomly initialised head is not the model that the user has."""
    missing, wrong = sorted(report.get("missing_keys") or ()), list(report.get("mismatched_keys") or ())
    if missing or wrong:
        names = [*missing, *[str(item[0]) for item in wrong]]
        raise ModelError(
            f"Model {str(folder)!r}: {architecture} needs {', '.join(map(repr, names[:NAMED]))} ({len(names)} in "
            "all), which are missing from the weights or have another shape there.",
            fix="Name the architecture that was trained in config.json ('architectures').",
        )
