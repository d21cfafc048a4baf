"""The files of a bundle, in one zip file or in a folder, read without trusting either.

ensures: a name consists of plain words and never leaves the archive; what is read is no longer than it was declared to
         be, and no member and no total exceeds the limit; the same files give the same zip, byte for byte.

These rules differ from those of :mod:`l0compress.loading.foreign_archives`: only the names and compression of our own
writer are accepted, which archives of torch and numpy would not pass, and sizes are bounded by a limit that the caller
gives.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

# Deflate cannot compress by more than this; a header that claims more is false.
MOST_DEFLATED = 1032
MOST_MEMBERS = 100_000

_NAME = re.compile(r"[a-z0-9_]{1,64}(/[a-z0-9_]{1,64}){0,3}\.(json|onnx|npz|npy)")
_FOLDER = re.compile(r"([a-z0-9_]{1,64}/){1,3}")
# Records of the zip format; every entry has the earliest date that the format knows, 1 January 1980.
_ENTRY = struct.Struct("<4s5H3I2H")
_LISTED = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_FIRST_DAY = 1 << 5 | 1
_MADE_ON_UNIX = 3 << 8 | 20
_PLAIN_FILE = 0o100644 << 16
_SAMPLE = 2**16
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    OverflowError,
)


class FormatError(Exception):
    """A part of a bundle is malformed; the message says how, and the loader adds where and what to do."""

    advice = "Copy or export it again."

    def within(self, place: str) -> FormatError:
        """Return the same error with the place where it was found."""
        return type(self)(f"{place} {self}")


class LimitError(FormatError):
    """A bundle needs more memory than allowed."""

    advice = "If you trust it, load it with a larger limit: l0compress_runtime.load(path, limit_bytes=...)."


class Files(Protocol):
    """Named files."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of one file."""
        ...

    def close(self) -> None:
        """Release what is open."""
        ...


class Archive:
    """The members of a zip file. Use :meth:`from_bytes`, or :func:`open_files`."""

    def __init__(self, stream: BinaryIO, size: int, *, limit_bytes: int) -> None:
        self._stream = stream
        try:
            self._zip = zipfile.ZipFile(stream)
            members = self._zip.infolist()
        except _BROKEN as error:
            raise FormatError(f"is not a zip file: {_brief(error)}") from error
        if len({member.filename for member in members}) != len(members):
            raise FormatError("has two members with the same name")
        if len(members) > MOST_MEMBERS:
            raise FormatError(f"has {len(members):,} members")
        for member in members:
            _check_member(member)
        total = sum(member.file_size for member in members)
        if total > MOST_DEFLATED * (size + 1):
            raise FormatError(f"would unpack to {total:,} bytes, which {size:,} bytes cannot hold")
        if total > limit_bytes:
            raise LimitError(f"would unpack to {total:,} bytes, but limit_bytes allows {limit_bytes:,}")
        self._members = {member.filename: member for member in members if not _is_folder(member)}

    @classmethod
    def from_bytes(cls, data: bytes, *, limit_bytes: int) -> Archive:
        """Open a zip file in memory.

        Raises:
            FormatError: it is not a zip file, or breaks one of the rules of this module.
        """
        return cls(io.BytesIO(data), len(data), limit_bytes=limit_bytes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the members."""
        return tuple(self._members)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read(self, name: str) -> bytes:
        """Return the content of one member.

        Raises:
            FormatError: there is no such member, it is damaged, or its length is not the declared one.
        """
        member = self._members.get(name)
        if member is None:
            raise FormatError(f"has no {name}")
        try:
            with self._zip.open(member) as stream:
                data = stream.read(member.file_size + 1)
        except _BROKEN as error:
            raise FormatError(f"cannot unpack {name}: {_brief(error)}") from error
        if len(data) != member.file_size:
            raise FormatError(f"has {len(data):,} bytes of {name}, which declares {member.file_size:,}")
        return data


class Folder:
    """The files of a folder; links are not followed."""

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        found = dict(_files_below(path))
        total = sum(file.stat().st_size for file in found.values())
        if total > limit_bytes:
            raise LimitError(f"has {total:,} bytes, but limit_bytes allows {limit_bytes:,}")
        self._found = found

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files below the folder."""
        return tuple(self._found)

    def close(self) -> None:
        """Do nothing: nothing stays open."""

    def read(self, name: str) -> bytes:
        """Return the content of one file.

        Raises:
            FormatError: there is no such file, or it cannot be read.
        """
        if name not in self._found:
            raise FormatError(f"has no {name}")
        try:
            return self._found[name].read_bytes()
        except OSError as error:
            raise FormatError(f"cannot read {name}: {error.strerror}") from error


def size_of(path: Path) -> int:
    """Return the bytes that a bundle takes on disk; nothing is opened.

    Raises:
        FormatError: there is no such path, or it is neither a file nor a folder: a pipe or a device may never end.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FormatError("there is no such file or folder") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        return sum(file.lstat().st_size for _, file in _files_below(path))
    if not stat.S_ISREG(status.st_mode):
        raise FormatError("is neither a file nor a folder")
    return status.st_size


def open_files(path: Path, *, limit_bytes: int) -> Files:
    """Open the files of a bundle.

    Raises:
        FormatError: the path is neither a folder nor a zip file, or breaks one of the rules of this module.
    """
    if path.is_dir():
        return Folder(path, limit_bytes=limit_bytes)
    try:
        stream, size = path.open("rb"), path.stat().st_size
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}") from error
    try:
        return Archive(stream, size, limit_bytes=limit_bytes)
    except FormatError:
        stream.close()
        raise


def write_zip(files: Mapping[str, bytes]) -> bytes:
    """Return a zip file with these members in this order; members that are archives are not deflated again.

    Example:
        >>> data = write_zip({"manifest.json": b"{}"})
        >>> data == write_zip({"manifest.json": b"{}"}), Archive.from_bytes(data, limit_bytes=100).read("manifest.json")
        (True, b'{}')
    """
    entries, directory, at = [], [], 0
    for name, data in files.items():
        packed = data if name.endswith(".npz") else _deflated(data)
        method = zipfile.ZIP_STORED if packed is data else zipfile.ZIP_DEFLATED
        sizes = zlib.crc32(data), len(packed), len(data), len(name), 0
        entry = _ENTRY.pack(b"PK\3\4", 20, 0, method, 0, _FIRST_DAY, *sizes) + name.encode("ascii") + packed
        listed = _LISTED.pack(b"PK\1\2", _MADE_ON_UNIX, 20, 0, method, 0, _FIRST_DAY, *sizes, 0, 0, 0, _PLAIN_FILE, at)
        entries.append(entry)
        directory.append(listed + name.encode("ascii"))
        at += len(entry)
    size = sum(map(len, directory))
    return b"".join((*entries, *directory, _END.pack(b"PK\5\6", 0, 0, len(files), len(files), size, at, 0)))


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield files by name, without hidden ones: desktop environments put their own files into folders."""

    def refuse(error: OSError) -> None:
        raise FormatError(f"cannot be read: {error.strerror}") from error

    count = 0
    for parent, inner, files in os.walk(folder, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        if any(Path(parent, name).is_symlink() for name in inner):
            raise FormatError("has a folder that is a link")
        for file in (Path(parent, name) for name in files if not name.startswith(".")):
            name = file.relative_to(folder).as_posix()
            if not _NAME.fullmatch(name) or not stat.S_ISREG(file.lstat().st_mode):
                raise FormatError(f"has {name[:80]!r}, which is not a bundle file")
            count += 1
            if count > MOST_MEMBERS:
                raise FormatError(f"has more than {MOST_MEMBERS:,} files")
            yield name, file


def _deflated(data: bytes) -> bytes:
    """Deflate with the strategy that suits a sample better: noise has no repetitions, and looking for them costs size.

    zipfile does not let its callers choose.
    """
    middle = len(data) // 2
    sample = data[middle : middle + _SAMPLE] + data[-_SAMPLE:]
    strategies = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
    packed = _packed(data, min(strategies, key=lambda strategy: len(_packed(sample, strategy))))
    return packed if len(packed) < len(data) else data


def _packed(data: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return packer.compress(data) + packer.flush()


def _is_folder(member: zipfile.ZipInfo) -> bool:
    """Return whether the member is a folder entry, which an archive does not need but most programs write."""
    return member.file_size == 0 and _FOLDER.fullmatch(member.filename) is not None


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if _is_folder(member):
        return
    if not _NAME.fullmatch(name):
        raise FormatError(f"has a member named {name[:80]!r}, which is not a bundle file")
    if member.flag_bits & 0x1:
        raise FormatError(f"has an encrypted member {name}")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(f"has {name} compressed by method {member.compress_type}")
    if member.file_size > MOST_DEFLATED * (member.compress_size + 1):
        raise FormatError(f"has {name} of {member.file_size:,} bytes in {member.compress_size:,}")


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
