"""A family from files to a run folder that can be resumed at any moment of it.

Its members are run folders inside it, by the names of their targets, each whole from the moment that it has its name.
What is under way is kept in the family's own folder: the settings, the model, the log and the last snapshot.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l0compress.measure.forms import form_tables
from l0compress.measure.table import Table
from l0compress.pipeline import runs
from l0compress.pipeline.compress_result import CompressResult
from l0compress.pipeline.compressing import members_of
from l0compress.pipeline.durable import sha256_of, sync, write_durably
from l0compress.pipeline.living_run import LivingRun, line, remove
from l0compress.pipeline.requests import RunRequest
from l0compress.pipeline.run_manifest import FINISHED, MANIFEST, RunManifest
from l0compress.pipeline.run_result import measured, metric_name
from l0compress.pipeline.sources import Prepared
from l0compress.pipeline.training_run import RunSummary, export_models, result_of, results_of
from l0compress.pipeline.under_way import begun, gone_on_with
from l0compress.pipeline.work import Work, warnings_of
from l0compress.training.events import OnEvent, ignore
from l0compress.training.family_targets import legs_of
from l0compress.training.state_dicts import MEMBER


@dataclass(frozen=True, eq=False)
class FamilySummary:
    """A finished family: where it is, its members from the largest to the smallest, and what was odd about the data."""

    folder: Path
    members: tuple[RunSummary, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        members = [{"run": str(member.folder), **member.result} for member in self.members]
        return {"run": str(self.folder), "members": members, "warnings": list(self.warnings)}

    def table(self) -> Table:
        """Dense against every member."""
        first = self.members[0]
        reading = runs.reading_of(first.folder)
        small = [measured(member.result, "small", called=member.folder.name) for member in self.members]
        name = metric_name(first.result, reading)
        models = [measured(first.result, "dense"), *small]
        (table,) = form_tables(models, metric_name=name, title="Dense against the family")
        meaning = () if reading is None or reading.meaning is None else (reading.meaning,)
        return replace(table, notes=(*table.notes, *meaning))


def finetune_family_run(request: RunRequest, *, on_event: OnEvent = ignore) -> FamilySummary:
    """Compress a model file to several budgets in one run, whose folder is resumable from its first moment on.

    Raises:
        InputError: something that was asked for is wrong; nothing was computed or written.
        CheckError: a member is not equal or not within its budget, or training broke down; the run is kept.
        StoppedError: Ctrl-C or SIGTERM came; the run is kept.
    """
    return begun(request, _make_members, on_event=on_event, about=_members)


def resume_family_run(
    folder: Path, *, given: Mapping[str, Any] | RunRequest | None = None, on_event: OnEvent = ignore
) -> FamilySummary:
    """Go on with a family where its last snapshot was taken, as :func:`~.training_run.resume_run` does with a run."""
    return gone_on_with(folder, _make_members, _summary, asked=given, on_event=on_event)


def _members(request: RunRequest, prepared: Prepared) -> Mapping[str, Any]:
    """The names of the members, in the order in which they are made."""
    legs = legs_of(prepared.graph, request.family, request.finetune_settings())
    return {runs.MEMBERS: [leg.name for leg in legs]}


def _make_members(work: Work) -> FamilySummary:
    run, request, checkpoints = work.run, work.request, work.checkpoints()
    settings = request.finetune_settings()
    made = members_of(
        work.prepared, request.family, settings, on_event=work.tell, checkpoints=checkpoints, measure=work.measure
    )
    for result in made:
        name = str(result.target)
        if work.processes.is_first and not runs.is_run(run.folder / name):
            with run.writing():
                _write_member(work, name, result)
        run.keep_(f"{name}/{MANIFEST}")
        work.trackers.conclude(result_of(result), member=name)
        checkpoints.check_stop()
    run.finish_({}, _no_models)
    return work.processes.from_first(lambda: _summary(run))


def _no_models(folder: Path) -> tuple[str, ...]:
    del folder
    return ()


def _summary(run: LivingRun) -> FamilySummary:
    family = runs.open_family(run.folder)
    members = tuple(RunSummary(member.folder, member.result) for member in family.members)
    return FamilySummary(run.folder, members, warnings_of(run))


def _write_member(work: Work, name: str, result: CompressResult) -> None:
    """A member's folder, under its name as soon as it is whole: until then it has one that leftovers have."""
    run, part = work.run, work.run.folder / f".{name}"
    remove(part)
    part.mkdir()
    for file in (runs.CONFIG, runs.DENSE):
        shutil.copyfile(run.folder / file, part / file)
    for file, content in results_of(result, work.prepared.data.preprocessing).items():
        write_durably(part / file, content)
    own = [{key: value for key, value in row.items() if key != MEMBER} for row in run.rows if row[MEMBER] == name]
    write_durably(part / runs.METRICS, b"".join(map(line, own)))
    export_models(part, result)
    for file in part.iterdir():
        sync(file)
    about = {key: value for key, value in run.manifest.about.items() if key != runs.MEMBERS}
    if result.reading.is_measured or work.request.given is not None:
        about[runs.READING] = result.reading.to_json()
    files = {file.name: sha256_of(file) for file in sorted(part.iterdir())}
    about[runs.MEMBER_OF] = list(run.manifest.about[runs.MEMBERS])
    RunManifest(FINISHED, "the end", None, files, about).write(part)
    part.rename(run.folder / name)
    sync(run.folder)
