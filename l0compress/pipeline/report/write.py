"""Write a run's page: gather, render, and put the file in its place in one piece."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from l0compress.errors import NOTHING_WRITTEN, InputError
from l0compress.export.files import staged, written_file
from l0compress.measure.page.content import Page
from l0compress.pipeline.machine import machine
from l0compress.pipeline.report import asked, forms, history, network, times
from l0compress.pipeline.report.told import DENSE, Told, told_by
from l0compress.pipeline.runs import check_not_of, is_family
from l0compress.progress import Stages

PAGE = "report.html"
_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class Report:
    """A page that was written: where it is, its size, and the microseconds by kind of operator that it shows."""

    path: Path
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"path": str(self.path), "size_bytes": self.size_bytes}


def write_report(
    run: Path, path: Path | None = None, *, profile: bool = True, batch: int = 1, threads: int = 1
) -> Report:
    """Write one HTML page about a finished run or family, which needs nothing beside it and loads nothing.

    Args:
        run: the folder.
        path: where to write; ``RUN/report.html`` where it is not given.
        profile: measure where the time goes, in dense and small as ONNX files.
        batch: samples a call of that measurement.
        threads: threads within an operator of that measurement.

    Raises:
        RunError: the run is none, not finished or damaged, or the page cannot be written.
        InputError: jinja2 is not installed, or the path belongs to the run.
    """
    folder = Path(run)
    destination = folder / PAGE if path is None else Path(path)
    report = told_by(folder)
    _check(report, destination)
    from l0compress.measure.page.render import html_of

    html = html_of(page_of(report, profile=profile, batch=batch, threads=threads))
    with staged(destination) as staging:
        staging.write_text(html, encoding="utf-8")
    return Report(destination, len(html.encode()))


def page_of(report: Told, *, profile: bool, batch: int, threads: int) -> Page:
    """Return what the page of a run shows."""
    stages = Stages([1 + len(report.members), 1 + len(report.members) if profile else 0])
    with stages.stage("reading the network"):
        frozen = network.frozen_of(report)
        layers, layers_note = network.layers_of(report, frozen)
        wholes, wholes_note = network.wholes_of(report, frozen)
    with stages.stage("profiling"):
        kinds, kinds_note = times.times_of(report, batch=batch, threads=threads) if profile else ((), "")
    return Page(
        title=report.folder.resolve().name,
        subtitle=_subtitle(report),
        tiles=asked.tiles_of(report),
        asked=asked.asked_of(report),
        outcome=asked.outcome_of(report),
        columns=forms.columns_of(report),
        forms=forms.forms_of(report),
        forms_note=forms.forms_note(report),
        history=history.history_of(report),
        history_notes=tuple(str(entry["message"]) for entry in report.log if entry.get("what") == "decided"),
        layers=layers,
        layers_note=layers_note,
        kinds=kinds,
        kinds_note=kinds_note,
        scatters=forms.scatters_of(report),
        scatter_note=_SCATTER_NOTE,
        wholes=wholes,
        wholes_note=wholes_note,
        journal=asked.journal_of(report),
        environment=asked.environment_of(report, here=machine()),
        commands=asked.commands_of(report),
        made=f"Made by l0compress {version('l0compress')}, {datetime.now(UTC).strftime('%Y-%m-%d %H:%M')} UTC.",
    )


def _subtitle(report: Told) -> str:
    made = f"compressed by l0compress from {report.settings.get('model', 'a model')}"
    if not report.is_family:
        return f"One small model, {made}"
    return f"A family of {len(report.members)}, {made}. The numbers on top are of {list(report.members)[-1]}."


_SCATTER_NOTE = (
    f"Grey squares: the {DENSE} model. Hollow marks: int8. The line: forms that no other beats, in score and cost at "
    "once."
)


def _check(report: Told, destination: Path) -> None:
    """Refuse before anything is computed."""
    if destination.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"Cannot write a report to {str(destination)!r}: it is an {' or '.join(_SUFFIXES)} file.",
            fix="Give such a name.",
            assurance=NOTHING_WRITTEN,
        )
    if not is_family(report.folder):
        check_not_of(report.first, destination)
    written_file(destination)
    if importlib.util.find_spec("jinja2") is None:
        raise InputError(
            "A report needs jinja2.", fix="Install it: pip install 'l0compress[report]'.", assurance=NOTHING_WRITTEN
        )
