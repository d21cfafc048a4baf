"""All or nothing: an artifact appears under its name complete, or not at all.

ensures: while an artifact is written and checked it lives in a hidden folder beside its destination; that folder is
         gone afterwards, whatever happened.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0compress.errors import RunError
from l0compress.table import Table
from l0compress.verify import Equality


@dataclass(frozen=True)
class Exported:
    """An artifact that was written.

    Attributes:
        path: where it is.
        size_bytes: size of its file, external data included.
        equality: how closely it agreed with its reference.
    """

    path: Path
    size_bytes: int
    equality: Equality

    def tables(self) -> tuple[Table, ...]:
        """What was measured, where there is anything."""
        return ()

    def lines(self) -> tuple[str, ...]:
        """What was checked, in words."""
        sizes = ", ".join(map(str, self.equality.batch_sizes))
        difference = f"largest relative difference {self.equality.max_relative:.2e} at batch sizes {sizes}"
        return (f"equal to the masked dense model: {difference}",)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {"path": str(self.path), "size_bytes": self.size_bytes, "equality": self.equality.to_json()}


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield the path to write to; when the body succeeds, everything beside it moves to where ``destination`` is.

    The staged file bears its final name, since an ONNX file names its external data. The main file moves last.

    Raises:
        RunError: the destination is a folder, or lies in a folder that does not exist or cannot be written to.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with staged(folder / "artifact.bin") as path:
        ...     size = path.write_bytes(b"done")
        >>> [entry.name for entry in folder.iterdir()]
        ['artifact.bin']
    """
    if destination.is_dir():
        raise RunError(f"{destination} is a folder. Nothing was written. Give the name of a file.")
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent)
    except OSError as error:
        raise RunError(
            f"cannot write {destination}: {error.strerror} ({destination.parent}). Nothing was written. Create that "
            "folder, or choose another."
        ) from error
    with folder as name:
        path = Path(name, destination.name)
        yield path
        for entry in sorted(Path(name).iterdir(), key=lambda entry: entry.name == path.name):
            entry.replace(destination.parent / entry.name)


def write_new(path: Path, content: bytes | memoryview, *, for_: Path) -> None:
    """Write a staged file.

    Raises:
        RunError: the disk is full or fails; the message names ``for_``, the destination.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise RunError(
            f"Cannot write {str(for_)!r}: {error.strerror}. Nothing was written. Make room, or choose another folder."
        ) from error


def size_on_disk(path: Path) -> int:
    """Size of an artifact in bytes, with the external data file beside it if there is one, or of all files of a folder.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "model.onnx")
        >>> path.write_bytes(b"12345"), size_on_disk(path)
        (5, 5)
    """
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size + (_data_file(path).stat().st_size if has_external_data(path) else 0)


def has_external_data(path: Path) -> bool:
    """Whether weights lie in a ``<name>.data`` file beside the artifact."""
    return _data_file(path).exists()


def _data_file(path: Path) -> Path:
    return path.with_name(path.name + ".data")
