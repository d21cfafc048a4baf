"""Untrusted zip archives: the directory is checked before a member is read.

requires: the bytes of an archive.
ensures:  what :func:`open_archive` returns has no member that is duplicated, leaves its folder, is encrypted, or
          grows far beyond the size of the file.

These rules differ from those of :mod:`l0compress_runtime.archive`: archives of torch and numpy may name and compress
their members in any honest way, while a bundle contains only what our own writer makes.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from l0compress.errors import InputError
from l0compress.loading.references import FOREIGN_ERRORS, first_line

# zlib cannot do better than 1032 to 1; compressed data sets stay far below that.
MOST_GROWTH = 200
FREE_BYTES = 64 * 2**20
ENCRYPTED = 0x1
ARCHIVE_ERRORS = (*FOREIGN_ERRORS, zipfile.BadZipFile, zipfile.LargeZipFile)


@dataclass(frozen=True)
class ForeignArchive:
    """A checked archive: its members by name, read one at a time."""

    file: zipfile.ZipFile
    name: str
    error: type[InputError]

    def names(self) -> tuple[str, ...]:
        """Return the members, in the directory's order."""
        return tuple(self.file.namelist())

    def size(self, member: str) -> int:
        """Return the uncompressed size of a member in bytes."""
        return self.file.getinfo(member).file_size

    def read(self, member: str) -> bytes:
        """Return the content of a member.

        Raises:
            InputError: (or the archive's own error class) the member is damaged.
        """
        try:
            return self.file.read(member)
        except ARCHIVE_ERRORS as reason:
            raise self.error(
                f"Cannot read {self.name}: its part {member!r} is damaged ({first_line(reason)}).",
                fix="Copy or download the file again.",
            ) from reason


def is_archive(content: bytes) -> bool:
    """Return whether bytes are meant to be a zip archive, sound or not.

    Example:
        >>> is_archive(b"no archive")
        False
    """
    try:
        return zipfile.is_zipfile(io.BytesIO(content))
    except zipfile.BadZipFile:
        return True


def open_archive(content: bytes, name: str, *, error: type[InputError] = InputError) -> ForeignArchive:
    """Open a zip archive whose directory holds no surprise.

    Args:
        content: the bytes of the file.
        name: what messages call it, such as ``model 'net.pt2'``.
        error: the class to raise.

    Raises:
        InputError: (or ``error``) not a zip archive, or one that no honest writer makes; the message names the member.

    Example:
        >>> buffer = io.BytesIO()
        >>> with zipfile.ZipFile(buffer, "w") as archive:
        ...     archive.writestr("../outside", "x")
        >>> open_archive(buffer.getvalue(), "data 'x.npz'")
        Traceback (most recent call last):
        ...
        l0compress_runtime.errors.InputError: Cannot read data 'x.npz': its part '../outside' leaves the archive's
        folder. Nothing was changed. No honest writer makes such a file; do not use it.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except ARCHIVE_ERRORS as reason:
        raise error(
            f"Cannot read {name}: it is not a zip archive, or is damaged ({first_line(reason)}).",
            fix="Copy or download the file again.",
        ) from reason
    fault = _fault(archive, len(content))
    if fault is not None:
        raise error(f"Cannot read {name}: {fault}.", fix="No honest writer makes such a file; do not use it.")
    return ForeignArchive(archive, name, error)


def _fault(archive: zipfile.ZipFile, num_bytes: int) -> str | None:
    members = archive.infolist()
    seen: set[str] = set()
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in member.filename or not member.filename.isprintable():
            return f"its part {member.filename!r} leaves the archive's folder"
        if member.filename.casefold() in seen:
            return f"it has two parts {member.filename!r}"
        if member.flag_bits & ENCRYPTED:
            return f"its part {member.filename!r} is encrypted"
        seen.add(member.filename.casefold())
    # Overlapping members make one byte of the file count many times, so compressed sizes are added up as well.
    packed, unpacked = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    if packed > num_bytes:
        return f"its parts add up to {packed:,} bytes in a file of {num_bytes:,}"
    if unpacked > max(MOST_GROWTH * num_bytes, FREE_BYTES):
        return f"it would unpack to {unpacked:,} bytes, from a file of {num_bytes:,}"
    return None
