"""The manifest of a run folder: which files it has, their checksums, and whether the run is finished.

It is the last file that is written, whatever is kept: what it does not name does not count.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from l0compress.errors import RunError, did_you_mean_path
from l0compress.pipeline.durable import sha256_of, write_durably

MANIFEST = "run.json"
FORMAT = 1
FINISHED, UNFINISHED = "finished", "unfinished"
_SELF = "sha256"


@dataclass(frozen=True)
class RunManifest:
    """Attributes:
    status: "finished" or "unfinished".
    position: how far training has come, for people.
    state: the path of the snapshot to go on from, without suffixes; None before the first.
    files: the SHA-256 of every file that will not change any more, by its path in the folder.
    about: what the run began with: versions, fingerprints of model and data; and settings changed on the way.
    """

    status: str = UNFINISHED
    position: str = "its beginning"
    state: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether results are there."""
        return self.status == FINISHED

    def write(self, folder: Path) -> None:
        """Write it to a run folder: from here on it holds.

        Raises:
            OSError: it cannot be written; the old one still holds.
        """
        content = {"format": FORMAT, **asdict(self)}
        signed = {**content, _SELF: _digest(content)}
        write_durably(folder / MANIFEST, (json.dumps(signed, indent=2) + "\n").encode())

    def check_files(self, folder: Path) -> None:
        """Read every file once.

        Raises:
            RunError: one is missing or is not what was written.
        """
        for name, expected in self.files.items():
            path = folder / name
            try:
                found = sha256_of(path)
            except OSError as error:
                raise RunError(
                    f"Cannot read {str(path)!r} of run {str(folder)!r}: {error.strerror}.",
                    fix="Restore the file, or repeat the run.",
                ) from error
            if found != expected:
                raise RunError(
                    f"{str(path)!r} is damaged or was modified: its SHA-256 is {found[:12]}…, and {MANIFEST} says "
                    f"{expected[:12]}….",
                    fix="Restore the file from a copy, or repeat the run.",
                )


def read_manifest(folder: Path) -> RunManifest:
    """The manifest of a run folder.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        way_on = did_you_mean_path(folder) or "Make one with l0compress finetune."
        raise RunError(f"Cannot read run {str(folder)!r}: no such folder. {way_on}")
    if not path.is_file():
        raise RunError(
            f"{str(folder)!r} is not a run: {MANIFEST} is missing. Name a run folder of l0compress finetune."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        signature = content.pop(_SELF)
        intact = signature == _digest(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        intact, content = False, {}
    if not intact:
        raise RunError(f"{str(path)!r} is damaged or was modified.", fix="Restore it from a copy, or repeat the run.")
    if content.pop("format") != FORMAT:
        raise RunError(f"{str(path)!r} was written by another version of l0compress.", fix="Use that version.")
    return RunManifest(**content)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
