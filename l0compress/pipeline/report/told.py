"""What a finished run's folder says: its results, settings, epochs and log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0compress.measure.pareto import Tradeoff
from l0compress.pipeline import runs
from l0compress.pipeline.config import read_config
from l0compress.pipeline.kept_bench import KeptBench, kept_bench
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.run_result import metric_name
from l0compress.training.reading import Reading

DENSE, SMALL = "dense", "small"
_HITS = ("accuracy", "agreement")


@dataclass(frozen=True)
class Told:
    """A finished run or family.

    Attributes:
        folder: where it is.
        members: the small models by the names that they have on the page, from the largest to the smallest.
        is_family: there are several.
        settings: what the run's ``config.toml`` says.
        about: what its manifest says of versions, model and data.
        rows: a line for every epoch, and for every phase that ends within one.
        log: when it began, stopped and went on.
        reading: what its scores mean, where that had to be measured.
        bench: what ``bench`` measured last.
    """

    folder: Path
    members: Mapping[str, runs.FinishedRun]
    is_family: bool
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    log: tuple[Mapping[str, Any], ...]
    reading: Reading | None
    bench: KeptBench | None

    @property
    def first(self) -> runs.FinishedRun:
        """The largest small model's run, or the one that there is."""
        return next(iter(self.members.values()))

    @property
    def score_name(self) -> str:
        """What the scores are, and the part of the data that they were taken on."""
        return metric_name(self.first.result, self.reading)

    @property
    def higher_is_better(self) -> bool:
        """Whether a better score is a higher one."""
        return self.first.result["val"][DENSE]["metric_name"] in _HITS

    @property
    def tradeoff(self) -> Tradeoff | None:
        """Forms against what they cost, where that was measured."""
        return None if self.bench is None else self.bench.tradeoff


def told_by(folder: Path) -> Told:
    """Read a finished run or family.

    Raises:
        RunError: it is none, is not finished, or a file of it is missing or damaged.
    """
    folder = Path(folder)
    if runs.is_family(folder):
        members = {member.folder.name: member for member in runs.open_family(folder).members}
        is_family = True
    else:
        members, is_family = {SMALL: runs.open_run(folder)}, False
    first = next(iter(members.values()))
    return Told(
        folder,
        members,
        is_family,
        read_config(folder / runs.CONFIG),
        read_manifest(folder).about,
        _lines(folder / runs.METRICS),
        _lines(folder / runs.LOG),
        runs.reading_of(first.folder),
        kept_bench(folder),
    )


def _lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The objects of a file of JSON lines; a member of a family has no log, and a killed run's may end in mid-line."""
    if not path.is_file():
        return ()
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return tuple(found)
