"""Load model files of every supported kind: one function looks at the name and calls the reader for that kind."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from torch.export import ExportedProgram

from l0compress.errors import ModelError, did_you_mean_path
from l0compress.loading.exported import load_pt2
from l0compress.loading.factories import build
from l0compress.loading.foreign_archives import ARCHIVE_ERRORS, is_archive
from l0compress.loading.weights import WEIGHT_SUFFIXES, read_weights, unwrap
from l0compress.loading.wrappers import unwrapped

SCRIPT_SUFFIXES = (".jit", ".torchscript")

Model: TypeAlias = nn.Module | ExportedProgram

KINDS = (
    "a .pt2 file of torch.export.save, a .jit file of TorchScript, weights "
    f"({', '.join(WEIGHT_SUFFIXES)}) with --factory package.module:function, "
    "an .onnx file, or a folder of Hugging Face transformers with a config.json"
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: the arguments of :func:`load_model`, kept together."""

    path: Path
    factory: str | None = None
    trust_pickle: bool = False
    factory_args: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Model:
        """Load it; see :func:`load_model`."""
        return load_model(
            self.path, factory=self.factory, factory_args=self.factory_args, trust_pickle=self.trust_pickle
        )


def load_model(
    path: Path | str,
    *,
    factory: str | None = None,
    factory_args: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> Model:
    """Load a model in evaluation mode.

    Args:
        path: a ``.pt2`` archive of ``torch.export.save``; weights (``.pt``, ``.pth``, ``.th``, ``.ckpt``, ``.bin``,
            ``.safetensors``), bare or in a checkpoint; an ``.onnx`` file; a folder of Hugging Face ``transformers``;
            or, if trusted, a pickled module or a TorchScript archive (``.jit``, or one of the suffixes of weights).
        factory: ``package.module:function`` that builds the module that the weights belong to.
        factory_args: keyword arguments of the factory.
        trust_pickle: allow the file to be unpickled, which runs any code that is in it.

    Returns:
        An ``ExportedProgram`` for ``.pt2``, an ``nn.Module`` otherwise.

    Raises:
        ModelError: the file is missing, unreadable, or not what the flags say.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(
            f"Cannot read model {str(path)!r}: no such file.", fix=did_you_mean_path(path) or "Check the path."
        )
    if path.is_dir():
        from l0compress.loading.huggingface import load_folder

        return load_folder(path)
    if path.suffix == ".pt2":
        return load_pt2(path, trust_pickle=trust_pickle)
    if path.suffix == ".onnx":
        from l0compress.loading.onnx_files import load_onnx

        return load_onnx(path)
    if path.suffix in SCRIPT_SUFFIXES:
        from l0compress.loading.torchscript import load_torchscript

        return load_torchscript(path, trust_pickle=trust_pickle)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise ModelError(f"Cannot read model {str(path)!r}: a model is {KINDS}.", fix="Give one of these.")
    return _from_weights(path, factory, factory_args or {}, trust_pickle)


def _from_weights(path: Path, factory: str | None, factory_args: Mapping[str, Any], trust_pickle: bool) -> nn.Module:
    if path.suffix != ".safetensors" and _is_torchscript(path):
        from l0compress.loading.torchscript import load_torchscript

        return load_torchscript(path, trust_pickle=trust_pickle)
    content = read_weights(path, trust_pickle=trust_pickle)
    module = content if isinstance(content, nn.Module) else _module_within(content)
    if module is not None:
        return unwrapped(module).eval()
    weights = unwrap(content)
    if weights is None:
        raise ModelError(
            f"Model {str(path)!r} holds a {type(content).__name__}, which is neither weights nor a module.",
            fix="Save the module's state_dict(), alone or under the key 'state_dict'.",
        )
    if factory is None:
        raise ModelError(
            f"Model {str(path)!r} holds weights, not a module. Name the function that builds the module: --factory "
            "package.module:function."
        )
    return build(factory, factory_args, weights, path)


def _module_within(content: Any) -> nn.Module | None:
    # A trusted checkpoint may hold the module itself where others hold its weights.
    found = content.get("model") if isinstance(content, Mapping) else None
    return found if isinstance(found, nn.Module) else None


def _is_torchscript(path: Path) -> bool:
    content = path.read_bytes()
    if not is_archive(content):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except ARCHIVE_ERRORS:
        return False
