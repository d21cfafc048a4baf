"""A fine-tuning run from files to a run folder that can be resumed at any moment of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l0compress.errors import TargetError
from l0compress.export.pt2 import export_pt2
from l0compress.measure.report import comparison_table
from l0compress.measure.table import Table
from l0compress.pipeline import runs
from l0compress.pipeline.compress_result import CompressResult
from l0compress.pipeline.compressing import compress_prepared
from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.requests import RunRequest
from l0compress.pipeline.run_result import json_bytes, measured, metric_name, targets_in
from l0compress.pipeline.under_way import begun, gone_on_with
from l0compress.pipeline.work import Work, warnings_of
from l0compress.training.events import OnEvent, ignore
from l0compress.training.targets import told


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
            measured(result, "dense"),
            measured(result, "small"),
            metric_name=metric_name(result, reading),
            title="Dense against small",
        )
        notes = [
            f"Budget: at most {told(target['unit'], target['limit'])}; "
            f"{told(target['unit'], target['reached'], named=False)} were used "
            f"({target['reached'] / target['limit']:.1%})."
            for target in targets_in(result)
        ]
        if "penalty" in result:
            name, strength = result["penalty"]["name"], result["penalty"]["multiplier"]
            notes.append(
                f"Penalty: {strength:.3g} of loss for each parameter{'' if name == 'penalty' else f' ({name})'}."
            )
        meaning = () if reading is None or reading.meaning is None else (reading.meaning,)
        return Table(table.title, table.columns, table.rows, (*notes, *meaning))


def finetune_run(request: RunRequest, *, on_event: OnEvent = ignore) -> RunSummary:
    """Compress a model file to a budget in a run folder, which is resumable from its first moment on.

    Raises:
        InputError: something that was asked for is wrong; nothing was computed or written.
        CheckError: what came out is not equal or not within the budget, or training broke down; the run is kept.
        StoppedError: Ctrl-C or SIGTERM came; the run is kept.
    """
    if request.family:
        raise TargetError(
            f"The target names {len(request.family)} members of a family, and a run has one.",
            fix="Call finetune_family_run, or name one target.",
        )
    return begun(request, _go_on, on_event=on_event)


def resume_run(
    folder: Path, *, given: Mapping[str, Any] | RunRequest | None = None, on_event: OnEvent = ignore
) -> RunSummary:
    """Go on with a run where its last snapshot was taken; the end is that of a run which was never stopped.

    Args:
        folder: the run. If it is finished, its result is returned.
        given: settings by their names in a configuration file. Those in ``CHANGEABLE`` may differ from what the run
            began with, and hold from here on; others have to be the same. Or a whole request with a model in memory.

    Raises:
        RunError: the folder is no run, is damaged or in use; model or data are not what the run began with; or
            ``given`` contradicts it.
        CheckError, StoppedError: as :func:`finetune_run`.
    """
    return gone_on_with(folder, _go_on, summary_of, asked=given, on_event=on_event)


def summary_of(run: LivingRun) -> RunSummary:
    """The summary of a run that is finished."""
    return RunSummary(run.folder, runs.open_run(run.folder).result, warnings_of(run))


def _go_on(work: Work) -> RunSummary:
    run, prepared, checkpoints = work.run, work.prepared, work.checkpoints()
    settings = work.request.finetune_settings()
    result = compress_prepared(
        prepared, work.request.wanted, settings, on_event=work.tell, checkpoints=checkpoints, measure=work.measure
    )
    checkpoints.check_stop()
    summary = result_of(result)
    if result.reading.is_measured or work.request.given is not None:
        run.note_(**{runs.READING: result.reading.to_json()})
    run.finish_(results_of(result, prepared.data.preprocessing), lambda folder: export_models(folder, result))
    work.trackers.conclude(summary)
    return RunSummary(run.folder, summary, warnings_of(run))


def results_of(result: CompressResult, preprocessing: Mapping[str, Any] | None) -> dict[str, bytes]:
    """What a finished run holds beside its models, by file name."""
    results = {
        runs.PLAN: json_bytes({"kept": result.plan.kept()}),
        runs.RESULT: json_bytes(result_of(result)),
    }
    if preprocessing is not None:
        results[runs.PREPROCESSING] = json_bytes(dict(preprocessing))
    return results


def export_models(folder: Path, result: CompressResult) -> tuple[str, ...]:
    """Write the models that a finished run holds; returns their names."""
    export_pt2(result.masked, folder / runs.MASKED)
    export_pt2(result.small, folder / runs.SMALL, reference=result.masked)
    return runs.MASKED, runs.SMALL


def result_of(result: CompressResult) -> dict[str, Any]:
    """What came out, as plain values for JSON."""
    targets = [budget.to_json() for budget in result.budgets]
    return {
        "target": targets[0] if len(targets) == 1 else targets,
        **({} if result.penalty is None else {"penalty": result.penalty.to_json()}),
        "dense": asdict(result.dense_cost),
        "small": asdict(result.small_cost),
        "nonzero": None if result.nonzero_cost is None else asdict(result.nonzero_cost),
        "val": result.val.to_json(),
        "test": None if result.test is None else result.test.to_json(),
        "equality": result.equality.to_json(),
        "epochs": len(result.history),
        "training_only": [asdict(part) for part in result.dense.training_only],
    }
