"""Who may write to a run folder: one process at a time, from the moment that the folder is made.

ensures: what holds a folder lets it go when its process ends, however that ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from l0compress.errors import NOTHING_WRITTEN, RunError
from l0compress.pipeline import runs
from l0compress.pipeline.living_run import LivingRun, remove
from l0compress.pipeline.run_manifest import RunManifest, read_manifest

# What a process that was killed before it wrote a manifest leaves: nothing that anybody would miss.
_BEFORE_MANIFEST = (runs.LOCK, runs.CONFIG, runs.DENSE, runs.METRICS, runs.LOG)


def check_new(folder: Path) -> None:
    """Raises:
    RunError: the folder exists and has something in it, or is no folder.
    """
    if not _foreign(folder) if folder.is_dir() else not os.path.lexists(folder):
        return
    way = f" To resume it: {runs.resume_command(folder)}" if runs.is_run(folder) else ""
    raise RunError(
        f"{str(folder)!r} already exists.", fix=f"Choose another folder with --output.{way}", assurance=NOTHING_WRITTEN
    )


def _foreign(folder: Path) -> bool:
    """Whether there is anything in a folder that is not the remains of a run that was killed at its very beginning."""
    names = [entry.name for entry in folder.iterdir()]
    begun = runs.LOCK in names and not runs.is_run(folder)
    return any(not (begun and (name in _BEFORE_MANIFEST or name.startswith("."))) for name in names)


@contextmanager
def begin_run(folder: Path, about: Mapping[str, Any]) -> Iterator[LivingRun]:
    """A new run's folder, held until the end of the block.

    Raises:
        RunError: the folder cannot be made, has something in it, or another process is making it.
    """
    check_new(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"Cannot write {str(folder)!r}: {error.strerror}.",
            fix="Choose another folder with --output.",
            assurance=NOTHING_WRITTEN,
        ) from error
    with _held(folder):
        check_new(folder)
        run = LivingRun(folder, RunManifest(about=dict(about)))
        run.drop_leftovers_()
        yield run


@contextmanager
def reopen_run(folder: Path) -> Iterator[LivingRun]:
    """A run's folder, every file of it checked, held until the end of the block; ``manifest.finished`` says if it is.

    Raises:
        RunError: it is none, it is damaged, or another process holds it.
    """
    read_manifest(folder)
    with _held(folder):
        manifest = read_manifest(folder)
        manifest.check_files(folder)
        run = LivingRun(folder, manifest)
        run.drop_leftovers_()
        yield run


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    # The kernel lets go of the lock when its process ends, however that ends.
    lock = FileLock(folder / runs.LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"Run {str(folder)!r} is in use by another process.",
            fix="Wait for it to end, or choose another folder with --output.",
        ) from error
    except OSError as error:
        raise RunError(
            f"Cannot write to run {str(folder)!r}: {error.strerror}.", fix="Choose another folder with --output."
        ) from error
    try:
        yield
    finally:
        lock.release()
        if runs.is_run(folder) and read_manifest(folder).finished:
            with suppress(OSError):
                (folder / runs.LOCK).unlink()


def remove_run(folder: Path, made: list[Path]) -> None:
    """Remove a run's folder and the parents that were made for it, where nothing else has come into them."""
    remove(folder)
    with suppress(OSError):
        for parent in made:
            parent.rmdir()


def missing_parents(folder: Path) -> list[Path]:
    """The parents of a folder that do not exist yet, innermost first."""
    return [parent for parent in (folder.parent, *folder.parent.parents) if not parent.exists()]
