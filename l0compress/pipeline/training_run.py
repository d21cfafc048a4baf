"""A fine-tuning run from files to a run folder that can be resumed at any moment of it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from signal import SIGINT
from typing import Any

import torch

from l0compress.errors import DivergedError, InputError, RunError
from l0compress.export.pt2 import export_pt2
from l0compress.graph.capture import CapturedGraph
from l0compress.latency import MeasuredTime
from l0compress.measure.report import comparison_table
from l0compress.measure.table import Table
from l0compress.pipeline import runs
from l0compress.pipeline.checkpoints import RunCheckpoints, Stops, listening, stopped
from l0compress.pipeline.compress import CompressResult, check_device, compress_prepared
from l0compress.pipeline.config import config_text, read_config
from l0compress.pipeline.fingerprints import check_same, data_fingerprint, graph_fingerprint
from l0compress.pipeline.holding import begin_run, check_new, missing_parents, remove_run, reopen_run
from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.options import CHANGEABLE, OPTIONS
from l0compress.pipeline.requests import RunRequest, request_of
from l0compress.pipeline.sources import Prepared, prepare
from l0compress.training.events import DECIDED, MEASURE, WARNING, OnEvent, ProgressEvent, ignore
from l0compress.training.latency_targets import Measure, measured_time
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import told

_CHANGES, _WARNINGS, _LATENCY = "changes", "warnings", "latency"


@dataclass(frozen=True, eq=False)
class RunSummary:
    """A finished run: where it is, what came out, and what was odd about its data."""

    folder: Path
    result: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"run": str(self.folder), **self.result, "warnings": list(self.warnings)}

    def table(self) -> Table:
        """Dense against small."""
        result, reading = self.result, runs.reading_of(self.folder)
        table = comparison_table(
            runs.measured(result, "dense"),
            runs.measured(result, "small"),
            metric_name=runs.metric_name(result, reading),
            title="Dense against small",
        )
        notes = [
            f"Budget: at most {told(target['unit'], target['limit'])}; "
            f"{told(target['unit'], target['reached'], named=False)} were used "
            f"({target['reached'] / target['limit']:.1%})."
            for target in runs.targets_in(result)
        ]
        meaning = () if reading is None or reading.meaning is None else (reading.meaning,)
        return Table(table.title, table.columns, table.rows, (*notes, *meaning))


def finetune_run(request: RunRequest, *, on_event: OnEvent = ignore) -> RunSummary:
    """Compress a model file to a budget in a run folder, which is resumable from its first moment on.

    Raises:
        InputError: something that was asked for is wrong; nothing was computed or written.
        CheckError: what came out is not equal or not within the budget, or training broke down; the run is kept.
        StoppedError: Ctrl-C or SIGTERM came; the run is kept.
    """
    folder = runs.default_folder(request.source.path.stem) if request.output is None else Path(request.output)
    check_new(folder)
    request = _with_threads(request)
    prepared = _prepared(request)
    began_with = _fingerprints(prepared)
    made = missing_parents(folder)
    with begin_run(folder, {**began_with, "versions": _versions()}) as run, _kept(run) as stops:
        try:
            run.begin_({runs.CONFIG: config_text(request.values()).encode()}, _dense_of(prepared))
            return _go_on(run, request, prepared, on_event, stops)
        except InputError as error:
            # What is wrong with the input is found before the first step; a full disk is nothing of that kind.
            if run.manifest.state is None and not isinstance(error, RunError):
                remove_run(folder, made)
            raise


def resume_run(folder: Path, *, given: Mapping[str, Any] | None = None, on_event: OnEvent = ignore) -> RunSummary:
    """Go on with a run where its last snapshot was taken; the end is that of a run which was never stopped.

    Args:
        folder: the run. If it is finished, its result is returned.
        given: settings by their names in a configuration file. Those in ``CHANGEABLE`` may differ from what the run
            began with, and hold from here on; others have to be the same.

    Raises:
        RunError: the folder is no run, is damaged or in use; model or data are not what the run began with; or
            ``given`` contradicts it.
        CheckError, StoppedError: as :func:`finetune_run`.
    """
    folder = Path(folder)
    with reopen_run(folder) as run:
        if run.manifest.finished:
            return RunSummary(folder, runs.open_run(folder).result, _warnings(run))
        request = _stored_request(run, given or {})
        prepared = _prepared(request)
        check_same(run.manifest.about, _fingerprints(prepared), str(folder))
        with _kept(run) as stops:
            run.log_("resumed", position=run.manifest.position)
            return _go_on(run, request, prepared, on_event, stops)


def _stored_request(run: LivingRun, given: Mapping[str, Any]) -> RunRequest:
    """What the run was asked to do, with what was changed then and now; the change is noted in the manifest."""
    before = run.manifest.about.get(_CHANGES, {})
    stored = {**read_config(run.folder / runs.CONFIG), **before}
    request = request_of(stored, output=run.folder)
    values = request.values()
    for name, value in given.items():
        if name not in CHANGEABLE and value != values[name]:
            raise RunError(
                f"Run {str(run.folder)!r} has {OPTIONS[name].place} = {values[name]!r}, but {value!r} was requested.",
                fix=f"Resume it without that, or start a new run; {', '.join(CHANGEABLE)} may change.",
            )
    changes = {name: value for name, value in given.items() if value != values[name]}
    if changes:
        run.note_(**{_CHANGES: {**before, **changes}})
        run.log_("changed", **changes)
    return _with_threads(request.changed(changes))


def _with_threads(request: RunRequest) -> RunRequest:
    """The number of threads belongs to a run: sums come out differently with another."""
    if request.threads is None:
        return replace(request, threads=torch.get_num_threads())
    torch.set_num_threads(request.threads)
    return request


def _prepared(request: RunRequest) -> Prepared:
    settings = request.finetune_settings()
    check_device(settings.device)
    dynamic = "batch" if request.fixed else "auto"
    return prepare(request.source.load(), request.data, loss=settings.loss, dynamic=dynamic)


def _go_on(run: LivingRun, request: RunRequest, prepared: Prepared, on_event: OnEvent, stops: Stops) -> RunSummary:
    def tell(event: ProgressEvent) -> None:
        if event.epoch_done:
            run.tell_(event)
        if event.stage == WARNING and event.message not in _warnings(run):
            run.log_(WARNING, message=event.message)
            run.note_(**{_WARNINGS: [*_warnings(run), event.message]})
        if event.stage == DECIDED:
            run.log_(DECIDED, message=event.message)
        on_event(event)

    checkpoints = RunCheckpoints(run, stops, every=request.checkpoint_every)
    settings = request.finetune_settings()
    result = compress_prepared(
        prepared, request.targets, settings, on_event=tell, checkpoints=checkpoints, measure=_measure(run, tell)
    )
    checkpoints.check_stop()
    summary = result_of(result)
    results = {runs.PLAN: runs.json_bytes({"kept": result.plan.kept()}), runs.RESULT: runs.json_bytes(summary)}
    if prepared.data.preprocessing is not None:
        results[runs.PREPROCESSING] = runs.json_bytes(dict(prepared.data.preprocessing))
    if result.reading.is_measured:
        run.note_(**{runs.READING: result.reading.to_json()})
    run.finish_(results, lambda folder: _export(folder, result))
    return RunSummary(run.folder, summary, _warnings(run))


def _measure(run: LivingRun, on_event: OnEvent) -> Measure:
    """Measures a time once in a run; it goes on with what was measured when it began."""

    def measure(graph: CapturedGraph, settings: FinetuneSettings) -> MeasuredTime:
        stored = run.manifest.about.get(_LATENCY)
        if stored is not None:
            return MeasuredTime.from_json(stored, graph)

        def tell(what: str, number: int, total: int) -> None:
            event = ProgressEvent(MEASURE, 0, settings.epochs, epoch_done=False, step=number, steps=total, message=what)
            on_event(event)

        found = measured_time(graph, settings, tell)
        run.note_(**{_LATENCY: found.to_json()})
        return found

    return measure


def _warnings(run: LivingRun) -> tuple[str, ...]:
    return tuple(run.manifest.about.get(_WARNINGS, ()))


@contextmanager
def _kept(run: LivingRun) -> Iterator[Stops]:
    """Ctrl-C and SIGTERM stop the run after a step, and what stops it says how to go on."""
    with listening() as stops:
        try:
            yield stops
        except DivergedError as error:
            run.log_("diverged", position=run.manifest.position)
            raise DivergedError(
                f"{error} The last good state is kept: {run.manifest.position}. Resume from there with a lower rate: "
                f"{runs.resume_command(run.folder)} --lr NUMBER"
            ) from error
        except KeyboardInterrupt as error:
            if not runs.is_run(run.folder):
                raise
            raise stopped(run, stops.signal or SIGINT) from error
        except (RuntimeError, OSError, EOFError) as error:
            # The signal went to the workers of a data loader as well: the loader misses them, or what they were handing
            # over when they died.
            if stops.signal is None:
                raise
            raise stopped(run, stops.signal) from error


def _fingerprints(prepared: Prepared) -> dict[str, Any]:
    return {"model": graph_fingerprint(prepared.graph), "data": data_fingerprint(prepared.data)}


def _versions() -> dict[str, str]:
    return {
        "l0compress": version("l0compress"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _dense_of(prepared: Prepared) -> Callable[[Path], tuple[str, ...]]:
    def export(folder: Path) -> tuple[str, ...]:
        export_pt2(prepared.graph, folder / runs.DENSE)
        return (runs.DENSE,)

    return export


def _export(folder: Path, result: CompressResult) -> tuple[str, ...]:
    export_pt2(result.masked, folder / runs.MASKED)
    export_pt2(result.small, folder / runs.SMALL, reference=result.masked)
    return runs.MASKED, runs.SMALL


def result_of(result: CompressResult) -> dict[str, Any]:
    """What came out, as plain values for JSON."""
    targets = [budget.to_json() for budget in result.budgets]
    return {
        "target": targets[0] if len(targets) == 1 else targets,
        "dense": asdict(result.dense_cost),
        "small": asdict(result.small_cost),
        "nonzero": None if result.nonzero_cost is None else asdict(result.nonzero_cost),
        "val": result.val.to_json(),
        "test": None if result.test is None else result.test.to_json(),
        "equality": result.equality.to_json(),
        "epochs": len(result.history),
        "training_only": [asdict(part) for part in result.dense.training_only],
    }
