"""All or nothing: an artifact appears under its name complete, or not at all.

ensures: while an artifact is written and checked it is in a hidden folder next to its destination; that folder is
         removed afterwards, whatever happened.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0compress.errors import NOTHING_WRITTEN, RunError
from l0compress.verification.equality import Equality


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

    def lines(self) -> tuple[str, ...]:
        """Return what was checked, in words."""
        sizes = ", ".join(map(str, self.equality.batch_sizes))
        difference = f"largest relative difference {self.equality.max_relative:.2e} at batch sizes {sizes}"
        return (f"equal to the masked dense model: {difference}",)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``."""
        return {"path": str(self.path), "size_bytes": self.size_bytes, "equality": self.equality.to_json()}


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield the path to write to; if the body succeeds, everything beside it moves to where ``destination`` is.

    The staged file has its final name, since an ONNX file names its external data. The main file moves last; the data
    of an ONNX file that it replaces are removed, unless it has its own. If the destination is a link, the file that it
    names is written and the link stays; what lies beside it lies beside the link, where ONNX Runtime looks for it.

    Raises:
        RunError: the destination is a folder or a device, or is in a folder that does not exist or cannot be written
            to; or the disk is full.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with staged(folder / "artifact.bin") as path:
        ...     size = path.write_bytes(b"done")
        >>> [entry.name for entry in folder.iterdir()]
        ['artifact.bin']
    """
    file = written_file(destination)
    with hidden_folder(destination) as folder:
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise _no_place(destination, destination.parent, error) from error
        path = folder / destination.name
        try:
            yield path
        except OSError as error:
            raise _no_room(destination, error) from error
        stale = _data_file(destination) if has_external_data(destination) and not _data_file(path).exists() else None
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name == path.name)
        others = {entry: written_file(destination.parent / entry.name) for entry in entries if entry != path}
        for entry in entries:
            _move(entry, others.get(entry, file), destination)
        if stale is not None:
            stale.unlink()


@contextmanager
def hidden_folder(destination: Path) -> Iterator[Path]:
    """Yield the path of a folder beside a destination, for the body to make; afterwards it is gone, whatever happened.

    ``tempfile`` makes the folder before there is anything that would remove it: a signal in between leaves it behind.

    Example:
        >>> import tempfile
        >>> home = Path(tempfile.mkdtemp())
        >>> with hidden_folder(home / "model.onnx") as folder:
        ...     folder.mkdir()
        ...     folder.name.startswith(".model.onnx."), [entry == folder for entry in home.iterdir()]
        (True, [True])
        >>> list(home.iterdir())
        []
    """
    folder = destination.parent / f".{destination.name}.{secrets.token_hex(4)}"
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def written_file(destination: Path) -> Path:
    """Return the file written under a name: the name itself, or what it links to, which need not exist.

    Raises:
        RunError: it is a folder, a device, a pipe or a socket, or links into a folder that does not exist.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "link").symlink_to("file")
        >>> written_file(folder / "link").name
        'file'
    """
    try:
        file = Path(os.path.realpath(destination)) if destination.is_symlink() else destination
        mode = file.lstat().st_mode
    except FileNotFoundError as error:
        if file is not destination and not file.parent.is_dir():
            raise _no_place(destination, file.parent, error) from error
        return file
    except (OSError, ValueError) as error:
        raise _no_place(destination, destination.parent, error) from error
    if stat.S_ISDIR(mode):
        raise RunError(f"{destination} is a folder.", fix="Give the name of a file.", assurance=NOTHING_WRITTEN)
    if not stat.S_ISREG(mode):
        raise RunError(
            f"{destination} is not a file but a device, a pipe, a socket or a link to itself.",
            fix="Give the name of a file.",
            assurance=NOTHING_WRITTEN,
        )
    return file


def _no_place(destination: Path, folder: Path, error: Exception) -> RunError:
    reason = getattr(error, "strerror", None) or error
    return RunError(
        f"cannot write {destination}: {reason} ({folder}).",
        fix="Create that folder, or choose another.",
        assurance=NOTHING_WRITTEN,
    )


def _no_room(destination: Path, error: OSError) -> RunError:
    # NumPy says only how many bytes it could not write.
    reason = error.strerror or os.strerror(errno.ENOSPC)
    return RunError(
        f"Cannot write {str(destination)!r}: {reason}.",
        fix="Make room, or choose another folder.",
        assurance=NOTHING_WRITTEN,
    )


def _move(entry: Path, file: Path, destination: Path) -> None:
    """Move a staged file to its place atomically, even to another disk, which a link may lead to."""
    try:
        try:
            entry.replace(file)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with hidden_folder(file) as folder:
                folder.mkdir(mode=0o700)
                Path(shutil.copyfile(entry, folder / file.name)).replace(file)
    except OSError as error:
        raise _no_place(destination, file.parent, error) from error


def write_new(path: Path, content: bytes | memoryview, *, for_: Path) -> None:
    """Write a staged file.

    Raises:
        RunError: the disk is full or fails; the message names ``for_``, the destination.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _no_room(for_, error) from error


def size_on_disk(path: Path) -> int:
    """Return the size of an artifact in bytes, including an external data file beside it, or of all files of a folder.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "model.onnx")
        >>> path.write_bytes(b"12345"), size_on_disk(path)
        (5, 5)
    """
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size + (_data_file(path).stat().st_size if has_external_data(path) else 0)


def has_external_data(path: Path) -> bool:
    """Return whether an ONNX file says that weights are in a ``<name>.data`` file beside it, and it exists."""
    data = _data_file(path)
    # Every weight stored there names the file, as plain text.
    return data.is_file() and path.is_file() and data.name.encode() in path.read_bytes()


def _data_file(path: Path) -> Path:
    return path.with_name(path.name + ".data")
