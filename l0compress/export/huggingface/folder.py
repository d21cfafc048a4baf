"""A Hugging Face folder on disk: what is copied from the source, and how all of it gets its name at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l0compress.errors import NOTHING_WRITTEN, ModelError, RunError
from l0compress.export.files import hidden_folder
from l0compress.loading.huggingface import CONFIG, transformer_folder

WEIGHTS, CARD, CODE = "model.safetensors", "README.md", "modeling_l0compress.py"
MODULES = "modules.json"
# The tag in the front matter of a card by which an export is known.
MARK = "\n- l0compress\n"
# Weights of any framework, and code: the folder gets its own. Everything else of a model is small.
_LEFT = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite", ".pb", ".py",
    ".index.json",
)  # fmt: skip


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what belongs to a model besides its weights: tokenizer, processor, generation settings, licence.

    Of a sentence-transformers folder the modules behind the transformer are copied whole.
    """
    own = transformer_folder(source)
    for part in {"", own}:
        for file in sorted((source / part).iterdir()):
            if file.is_file() and not file.name.endswith(_LEFT) and file.name not in (CONFIG, CARD):
                shutil.copyfile(file, folder / part / file.name)
    for name in module_folders(source):
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)


def module_folders(source: Path) -> tuple[str, ...]:
    """The folders of the modules behind the transformer of a sentence-transformers folder; none of another.

    Raises:
        ModelError: the list of modules is damaged, or leads out of the folder.
    """
    if not (source / MODULES).is_file():
        return ()
    try:
        names = [str(module.get("path", "")) for module in json.loads((source / MODULES).read_text(encoding="utf-8"))]
    except (AttributeError, TypeError, ValueError, RecursionError) as reason:
        raise ModelError(f"{str(source / MODULES)!r} is damaged.", fix="Download the folder again.") from reason
    if any(name in (".", "..") or Path(name).name != name for name in names):
        raise ModelError(f"{str(source / MODULES)!r} leads out of the folder.", fix="Download the folder again.")
    return tuple(name for name in names if name not in ("", transformer_folder(source)))


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json`` as transformers does."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """Yield an empty folder; if the body succeeds, it becomes ``destination``, and otherwise nothing is left of it.

    Raises:
        RunError: the destination is there and is no earlier export, or cannot be written.

    Example:
        >>> import tempfile
        >>> destination = Path(tempfile.mkdtemp(), "small")
        >>> with staged_folder(destination) as folder:
        ...     write_config(folder, {"l0compress": {}})
        >>> [file.name for file in destination.iterdir()]
        ['config.json']
    """
    if destination.exists() and not _may_replace(destination):
        raise RunError(
            f"{str(destination)!r} exists and was not written by l0compress.",
            fix="Give the name of a new folder.",
            assurance=NOTHING_WRITTEN,
        )
    with hidden_folder(destination) as hidden:
        try:
            hidden.mkdir(mode=0o700)
        except OSError as reason:
            raise RunError(
                f"cannot write {str(destination)!r}: {reason.strerror or reason}.",
                fix="Create the folder that it is to be in, or choose another.",
                assurance=NOTHING_WRITTEN,
            ) from reason
        new, old = hidden / destination.name, hidden / "old"
        new.mkdir()
        try:
            yield new
            if destination.exists():
                destination.rename(old)
            new.rename(destination)
        except OSError as reason:
            if old.exists() and not destination.exists():
                old.rename(destination)
            raise RunError(
                f"cannot write {str(destination)!r}: {reason.strerror or reason}.", fix="Make room, or choose another."
            ) from reason


def _may_replace(destination: Path) -> bool:
    """Whether a folder is empty or an earlier export."""
    if not destination.is_dir():
        return False
    if not any(destination.iterdir()):
        return True
    card = destination / CARD
    if not card.is_file() or not (destination / transformer_folder(destination) / CONFIG).is_file():
        return False
    front, end, _ = card.read_text(encoding="utf-8", errors="replace").partition("\n---\n")
    return front.startswith("---\n") and bool(end) and MARK in front
