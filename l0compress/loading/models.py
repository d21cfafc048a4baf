"""Model files: an exported program, or weights with a factory that builds the module, or a trusted pickle."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.export import ExportedProgram

from l0compress.errors import ModelError
from l0compress.loading.references import FOREIGN_ERRORS, call_reference, first_line

Model: TypeAlias = nn.Module | ExportedProgram

WEIGHT_SUFFIXES = (".pt", ".pth", ".th", ".safetensors")
WRAPPING_KEYS = ("state_dict", "model_state_dict", "model")
_READ_ERRORS = (*FOREIGN_ERRORS, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError)
# Entries of an archive that torch.export.load would unpickle or run as native code.
_UNSAFE_ENTRY = re.compile(r"data/(weights|constants)/[^/]*\.pt|data/constants/(custom|opaque)_obj|data/aotinductor/")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: the arguments of :func:`load_model`, kept together."""

    path: Path
    factory: str | None = None
    trust_pickle: bool = False

    def load(self) -> Model:
        """Load it; see :func:`load_model`."""
        return load_model(self.path, factory=self.factory, trust_pickle=self.trust_pickle)


def load_model(path: Path | str, *, factory: str | None = None, trust_pickle: bool = False) -> Model:
    """Load a model in evaluation mode.

    Args:
        path: a ``.pt2`` archive of ``torch.export.save``; weights (``.pt``, ``.pth``, ``.th``, ``.safetensors``); or
            a pickled module (``.pt``, ``.pth``, ``.th``).
        factory: ``package.module:function`` that builds the module which the weights belong to.
        trust_pickle: allow the file to be unpickled, which runs any code that is in it.

    Returns:
        An ``ExportedProgram`` for ``.pt2``, an ``nn.Module`` otherwise.

    Raises:
        ModelError: the file is missing, unreadable, or not what the flags say.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"Cannot read model {str(path)!r}: no such file.")
    if path.suffix == ".pt2":
        return load_pt2(path, trust_pickle=trust_pickle)
    if path.is_dir() or path.suffix not in WEIGHT_SUFFIXES:
        raise ModelError(
            f"Cannot read model {str(path)!r}: a model is a .pt2 file of torch.export.save, or weights "
            f"({', '.join(WEIGHT_SUFFIXES)}) with --factory package.module:function."
        )
    content = _read_weights(path, trust_pickle)
    if isinstance(content, nn.Module):
        return content.eval()
    weights = _unwrap(content)
    if weights is None:
        raise ModelError(f"Model {str(path)!r} holds a {type(content).__name__}, neither weights nor a module.")
    if factory is None:
        raise ModelError(
            f"Model {str(path)!r} holds weights, not a module. Say what builds the module: "
            "--factory package.module:function."
        )
    return _fill(factory, weights, path)


def load_pt2(path: Path | str, *, trust_pickle: bool = False) -> ExportedProgram:
    """Load an archive of ``torch.export.save``; an archive with pickled or native parts only where it is trusted.

    Raises:
        ModelError: the file is missing, unreadable, or has such parts and is not trusted.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if not trust_pickle:
            _refuse_unsafe_archive(content, path)
        with _quiet_torch_export():
            return torch.export.load(io.BytesIO(content))
    except _READ_ERRORS as reason:
        raise ModelError(
            f"Cannot read model {str(path)!r} as an archive of torch.export.save ({first_line(reason)})."
        ) from reason


@contextmanager
def _quiet_torch_export() -> Iterator[None]:
    # torch.export.load logs a traceback of the very error that it then raises.
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse_unsafe_archive(content: bytes, path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        entries = {name.partition("/")[2]: name for name in names}
        unsafe = [entry for entry in entries if _UNSAFE_ENTRY.match(entry)]
        legacy = "version" in names or len(entries) != len(names)
        for entry, name in entries.items():
            if entry.startswith(("data/weights/", "data/constants/")) and entry.endswith("_config.json"):
                payloads = json.loads(archive.read(name))["config"].values()
                unsafe += [f"{entry}: {payload['path_name']}" for payload in payloads if payload["use_pickle"]]
            if entry.startswith("data/sample_inputs/") and not _unpickles_safely(archive.read(name)):
                unsafe.append(entry)
    if unsafe or legacy:
        what = unsafe[0] if unsafe else "an outdated layout"
        raise ModelError(
            f"Model {str(path)!r} has parts that run code when they are loaded ({what}). "
            "Nothing was loaded. If you trust its author, say --trust-pickle."
        )


def _unpickles_safely(content: bytes) -> bool:
    try:
        _torch_load(content, weights_only=True)
    except _READ_ERRORS:
        return not content
    return True


def _read_weights(path: Path, trust_pickle: bool) -> Any:
    try:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            return load_safetensors(content)
        return _torch_load(content, weights_only=not trust_pickle)
    except pickle.UnpicklingError as reason:
        if trust_pickle or not _looks_pickled(path):
            raise ModelError(f"Cannot read model {str(path)!r}: the file is damaged or no model file.") from reason
        raise ModelError(
            f"Model {str(path)!r} is a pickled object, and loading it runs code that is in the file. "
            "Nothing was loaded. If you trust its author, say --trust-pickle; safer is "
            "torch.save(model.state_dict(), ...) with --factory, or torch.export.save."
        ) from reason
    except _READ_ERRORS as reason:
        raise ModelError(f"Cannot read model {str(path)!r} ({first_line(reason)}).") from reason


def _torch_load(content: bytes, *, weights_only: bool) -> Any:
    with warnings.catch_warnings():
        # Other writers choose another pickle protocol, about which torch.load warns and which it then reads.
        warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=weights_only)


def _looks_pickled(path: Path) -> bool:
    # torch.save writes a zip archive, and pickle (protocol 2 and later) starts with this byte.
    return zipfile.is_zipfile(path) or path.read_bytes()[:1] == pickle.PROTO


def _unwrap(content: Any) -> dict[str, Tensor] | None:
    # Checkpoints of training scripts keep the weights under a key, and DataParallel prefixes their names.
    if not isinstance(content, Mapping):
        return None
    for key in WRAPPING_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights or len(weights) != len(content):
        return None
    if all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def _fill(factory: str, weights: dict[str, Tensor], path: Path) -> nn.Module:
    module = call_reference(factory, flag="--factory", error=ModelError)
    if not isinstance(module, nn.Module):
        raise ModelError(f"--factory {factory!r} returned a {type(module).__name__}, not a torch.nn.Module.")
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as reason:
        details = [line.strip() for line in str(reason).splitlines()[1:] if line.strip()]
        raise ModelError(
            f"The weights in {str(path)!r} do not fit the module of --factory {factory!r}: {details[0]}"
        ) from reason
    if missing or unexpected:
        parts = [f"{label} {names[0]!r} ({len(names)} in all)" for label, names in
                 (("the file lacks", missing), ("the module lacks", unexpected)) if names]  # fmt: skip
        raise ModelError(
            f"The weights in {str(path)!r} do not fit the module of --factory {factory!r}: {'; '.join(parts)}."
        )
    return module.eval()
