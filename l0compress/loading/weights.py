"""Files of weights: read without running anything in them, and stripped of what training scripts add."""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from l0compress.errors import ModelError
from l0compress.loading.foreign_archives import FREE_BYTES, is_archive, open_archive
from l0compress.loading.references import FOREIGN_ERRORS, first_line

PICKLE_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin")
WEIGHT_SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors")
WRAPPING_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
# DataParallel and DistributedDataParallel, torch.compile, averaged copies; several may occur in a row.
PREFIXES = ("module.", "_orig_mod.", "_forward_module.")
COUNTERS = ("n_averaged",)
READ_ERRORS = (*FOREIGN_ERRORS, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, struct.error)
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_weights(path: Path, *, trust_pickle: bool = False) -> Any:
    """Return the content of a file of weights: for ``.safetensors`` a dict of tensors, otherwise whatever was saved.

    Without ``trust_pickle`` only tensors and plain containers are built; no code from the file runs.

    Raises:
        ModelError: the file is damaged, or holds objects and is not trusted.
    """
    content = path.read_bytes()
    name = f"model {str(path)!r}"
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(content)
        return load_tensors(content, name) if not trust_pickle else _torch_load(content, weights_only=False)
    except pickle.UnpicklingError as reason:
        if trust_pickle or not _looks_pickled(content):
            raise ModelError(
                f"Cannot read {name}: the file is damaged or not a model file ({first_line(reason)}).",
                fix="Copy or download it again.",
            ) from reason
        found = _REFUSED_GLOBAL.search(str(reason))
        what = f" (it imports {found[1]})" if found else ""
        raise ModelError(
            f"Model {str(path)!r} is a pickled object; loading it would run code from the file.",
            fix=(
                "If you trust its author, pass --trust-pickle; safer is torch.save(model.state_dict(), ...) with "
                "--factory, or torch.export.save."
            ),
            assurance=f"Nothing was loaded{what}.",
        ) from reason
    except READ_ERRORS as reason:
        raise ModelError(
            f"Cannot read {name} ({first_line(reason)}).", fix="Copy or download the file again."
        ) from reason


def load_tensors(content: bytes, name: str) -> Any:
    """Run ``torch.load(weights_only=True)`` on bytes; if they are an archive, it is checked first.

    Raises:
        ModelError: the archive is malformed, or a tensor in it is far larger than the file.
        pickle.UnpicklingError: it holds more than tensors and containers. FOREIGN_ERRORS: it is damaged.
    """
    if is_archive(content):
        open_archive(content, name, error=ModelError)
    found = _torch_load(content, weights_only=True)
    limit = max(len(content), FREE_BYTES)
    for key, tensor in _tensors(found):
        if tensor.numel() * tensor.element_size() > limit:
            raise ModelError(
                f"Cannot read {name}: its tensor {key!r} claims shape {tuple(tensor.shape)}, which is more than the "
                "file holds.",
                fix="No honest writer makes such a file; do not use it.",
            )
    return found


def _tensors(value: Any) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    while stack:
        key, item, depth = stack.pop()
        if isinstance(item, Tensor):
            found.append((key, item))
        elif isinstance(item, Mapping) and depth < 8:
            stack += [(str(name), part, depth + 1) for name, part in item.items()]
        elif isinstance(item, list | tuple) and depth < 8:
            stack += [(key, part, depth + 1) for part in item]
    return found


def _torch_load(content: bytes, *, weights_only: bool) -> Any:
    with warnings.catch_warnings():
        # Other writers use another pickle protocol, which torch.load warns about and then reads.
        warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=weights_only)


def _looks_pickled(content: bytes) -> bool:
    # torch.save writes a zip archive, and pickle (protocol 2 and later) starts with this byte.
    return is_archive(content) or content[:1] == pickle.PROTO


def unwrap(content: Any) -> dict[str, Tensor] | None:
    """Return the weights in what a training script saved, under the module's own names; None if there are none.

    The weights may be stored under a key such as ``state_dict``, and wrappers may have added prefixes to their names.

    Example:
        >>> sorted(unwrap({"model": {"module._orig_mod.fc.weight": torch.zeros(2)}, "epoch": 3}))
        ['fc.weight']
        >>> unwrap({"epoch": 3}) is None
        True
    """
    if not isinstance(content, Mapping):
        return None
    for key in WRAPPING_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not weights or len(weights) != len(content):
        return None
    weights = {name: value for name, value in weights.items() if name not in COUNTERS}
    found = True
    while found:
        found = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in weights)), None)
        if found:
            weights = {name.removeprefix(found): value for name, value in weights.items()}
    return weights
