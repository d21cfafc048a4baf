"""The run folder as its readers see it; docs/run_folder.md describes every file.

::

    RUN/
      run.json    checksums; whether the run is finished
      config.toml      what was asked for: finetune --config RUN/config.toml does it again
      dense.pt2        the model as it was given
      metrics.jsonl    one line per epoch
      log.jsonl        when it began, stopped and went on, and the seconds of every epoch
      state/           while the run is unfinished: where it goes on
      masked.pt2       the dense-shaped model with the trained weights, blind to what was removed: the reference
      small.pt2        the same function, physically smaller: what is exported
      plan.json        which channels were kept, group by group
      result.json      costs and metrics, dense against small
      preprocessing.json   how raw data became the model's inputs, where this package did that (docs/data.md)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from l0compress.errors import NOTHING_WRITTEN, InputError, RunError
from l0compress.pipeline.run_manifest import MANIFEST, RunManifest, read_manifest
from l0compress.pipeline.run_result import read_result
from l0compress.training.family_targets import parse_targets
from l0compress.training.reading import Reading

RUNS = Path("runs")
CONFIG, RESULT, PLAN, METRICS, LOG = "config.toml", "result.json", "plan.json", "metrics.jsonl", "log.jsonl"
PREPROCESSING = "preprocessing.json"
DENSE, MASKED, SMALL = "dense.pt2", "masked.pt2", "small.pt2"
STATE, LOCK = "state", ".lock"
READING = "reading"
# What a run was given in Python that no file names; the manifest tells of it.
GIVEN = "given"
MEMBERS, MEMBER_OF = "members", "member_of"


@dataclass(frozen=True)
class FinishedFamily:
    """A finished family: its folder, and its members from the largest to the smallest, each a run."""

    folder: Path
    members: tuple[FinishedRun, ...]

    def member(self, target: str) -> FinishedRun:
        """The member of a target, however that is written.

        Raises:
            TargetError: it is no target.
            RunError: there is no such member.
        """
        (wanted, *more), names = parse_targets(target), [member.folder.name for member in self.members]
        found = [member for member in self.members if member.folder.name == str(wanted) and not more]
        if not found:
            raise RunError(f"Family {str(self.folder)!r} has no member {target!r}.", fix=f"It has {', '.join(names)}.")
        return found[0]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder, and what came out."""

    folder: Path
    result: dict[str, Any]

    @property
    def dense(self) -> Path:
        """The model as it was given."""
        return self.folder / DENSE

    @property
    def masked(self) -> Path:
        """The dense-shaped model that every export of the run must equal."""
        return self.folder / MASKED

    @property
    def small(self) -> Path:
        """The smaller model."""
        return self.folder / SMALL


def open_run(folder: Path | None = None, *, root: Path = RUNS) -> FinishedRun:
    """Open a finished run, every file checked; by default the newest one under ``root``.

    Raises:
        RunError: there is none, it is not finished, it is a family, or a file of it is missing or damaged.
    """
    folder = newest_run(root) if folder is None else Path(folder)
    manifest = _finished(folder)
    members = members_of(manifest)
    if members:
        raise RunError(
            f"Run {str(folder)!r} is a family.",
            fix=f"Name one of its members: {', '.join(str(folder / name) for name in members)}.",
        )
    manifest.check_files(folder)
    return FinishedRun(folder, read_result(folder / RESULT))


def open_family(folder: Path) -> FinishedFamily:
    """Open a finished family, every file checked.

    Raises:
        RunError: it is no family, is not finished, or a file of it is missing or damaged.
    """
    manifest = _finished(folder)
    manifest.check_files(folder)
    members = members_of(manifest)
    if not members:
        raise RunError(f"Run {str(folder)!r} has no members: it is no family.")
    return FinishedFamily(folder, tuple(open_run(folder / name) for name in members))


def members_of(manifest: RunManifest) -> tuple[str, ...]:
    """The names of a family's members, from the largest to the smallest; none where a manifest is of a single run."""
    return tuple(manifest.about.get(MEMBERS, ()))


def made_from(folder: Path, artifact: Path) -> FinishedRun:
    """Open the run that an artifact is compared with: of a family the member in whose folder the artifact is.

    Raises:
        RunError: as :func:`open_run`.
    """
    for name in members_of(read_manifest(folder)):
        if artifact.resolve().is_relative_to((folder / name).resolve()):
            return open_run(folder / name)
    return open_run(folder)


def is_family(folder: Path) -> bool:
    """Whether a folder is a family's, finished or not.

    Raises:
        RunError: its manifest is damaged.
    """
    return is_run(folder) and bool(members_of(read_manifest(folder)))


def _finished(folder: Path) -> RunManifest:
    manifest = read_manifest(folder)
    if not manifest.finished:
        raise RunError(
            f"Run {str(folder)!r} is not finished: its last state is {manifest.position}.",
            fix=f"Unless it is running right now, finish it with: {resume_command(folder)}",
        )
    return manifest


def check_not_of(run: FinishedRun, path: Path) -> None:
    """Refuse to write over what a run consists of.

    Raises:
        InputError: the path is a file of the run that its manifest names, or the manifest itself.
    """
    own = {(run.folder / name).resolve() for name in (MANIFEST, *read_manifest(run.folder).files)}
    if path.resolve() in own:
        raise InputError(
            f"{str(path)!r} belongs to the run {str(run.folder)!r} itself, which needs it.",
            fix="Omit the path, or give another one.",
            assurance=NOTHING_WRITTEN,
        )


def newest_run(root: Path = RUNS) -> Path:
    """The finished run under ``root`` that was finished last.

    Raises:
        RunError: there is none.
    """
    found = _newest(root, lambda manifest: manifest.finished)
    if found is None:
        raise RunError(f"There is no finished run under {str(root)!r}. Name one, or make one with l0compress finetune.")
    return found


def newest_unfinished(root: Path = RUNS) -> Path:
    """The unfinished run under ``root`` that was kept last.

    Raises:
        RunError: there is none.
    """
    found = _newest(root, lambda manifest: not manifest.finished)
    if found is None:
        raise RunError(
            f"There is no unfinished run under {str(root)!r}.",
            fix="Name the run to resume: l0compress finetune --resume RUN",
        )
    return found


def _newest(root: Path, wanted: Callable[[RunManifest], bool]) -> Path | None:
    found = sorted(root.glob(f"*/{MANIFEST}"), key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
    return next((path.parent for path in reversed(found) if wanted(read_manifest(path.parent))), None)


def is_run(path: Path) -> bool:
    """Whether a path is a run folder, finished or not."""
    return (path / MANIFEST).is_file()


def resume_command(folder: Path, *, lower_rate: bool = False) -> str:
    """What to type to go on with a run; of one that was given its model in Python, what to call."""
    function = _called(folder)
    if function is None:
        return f"l0compress finetune --resume {folder}{' --lr NUMBER' if lower_rate else ''}"
    settings = "settings=FinetuneSettings(learning_rate=NUMBER, ...), " if lower_rate else ""
    return f"l0compress.{function}(..., {settings}output={str(folder)!r}, resume=True)"


def _called(folder: Path) -> str | None:
    """The function of Python that began a run; None where the command line did, or nobody can say."""
    try:
        manifest = read_manifest(folder)
    except RunError:
        return None
    if GIVEN not in manifest.about:
        return None
    return "compress_family" if members_of(manifest) else "compress"


def default_folder(stem: str, *, root: Path = RUNS) -> Path:
    """Where a new run goes by default: under ``root``, named by date, time and the model file's stem."""
    return root / f"{datetime.now().strftime('%Y%m%d-%H%M%S')}-{stem}"


def reading_of(folder: Path) -> Reading | None:
    """How a finished run read outputs and targets; None where nothing had to be measured for it, or the run is old.

    Raises:
        RunError: the manifest is damaged.
    """
    return Reading.from_json(read_manifest(folder).about.get(READING))
