"""Files that survive: whole or not at all under their name, on the disk when we say so, and checked when read."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

PART = ".part"
_CHUNK = 1 << 20


def write_durably(path: Path, content: bytes) -> str:
    """Write a file so that its name stands for the old content or for the new one, whatever happens; its SHA-256.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_durably(folder / "a.txt", b"abc")[:8], [entry.name for entry in folder.iterdir()]
    ('ba7816bf', ['a.txt'])

    Raises:
        OSError: the disk is full or fails; nothing new is left.
    """
    part = path.with_name(f".{path.name}{PART}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return hashlib.sha256(content).hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle on a folder to wait for.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
