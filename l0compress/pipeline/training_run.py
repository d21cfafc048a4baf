"""A fine-tuning run from files to a run folder: all of it is there at the end, or nothing."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from l0compress.errors import InputError
from l0compress.export.pt2 import export_pt2
from l0compress.loading import DataSource, ModelSource, Target, import_reference, load_data
from l0compress.pipeline import runs
from l0compress.pipeline.compress import CompressResult, compress
from l0compress.report import Table, comparison_table
from l0compress.training.events import OnEvent, ProgressEvent, ignore
from l0compress.training.settings import FinetuneSettings


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to do.

    Attributes:
        source: the model file.
        data: names the data.
        target: the budget.
        loss: ``auto``, ``cross-entropy``, ``mse``, or ``package.module:function`` of (outputs, targets).
        output: the run's folder, new or empty; under ``./runs`` by date and time where it is None.
        settings: fields of :class:`~l0compress.training.settings.FinetuneSettings` that differ from their defaults.
    """

    source: ModelSource
    data: DataSource | str
    target: Target
    loss: str = "auto"
    output: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RunSummary:
    """A finished run: where it is, and what came out."""

    folder: Path
    result: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"run": str(self.folder), **self.result}

    def table(self) -> Table:
        """Dense against small."""
        target, result = self.result["target"], self.result
        table = comparison_table(
            runs.measured(result, "dense"),
            runs.measured(result, "small"),
            metric_name=runs.metric_name(result),
            title="Dense against small",
        )
        share = target["reached"] / target["limit"]
        note = f"Budget: at most {target['limit']:,} {target['unit']}; {target['reached']:,} were used ({share:.1%})."
        return Table(table.title, table.columns, table.rows, (note,))


def finetune_run(request: RunRequest, *, on_event: OnEvent = ignore) -> RunSummary:
    """Compress a model file to a budget and leave everything in a run folder.

    Raises:
        InputError: something that was asked for is wrong; nothing was computed or written.
        CheckError: what came out is not equal or not within the budget; nothing was written.
    """
    settings = _settings(request)
    folder = runs.run_folder(request.output, request.source.path.stem)
    model = request.source.load()
    data = load_data(request.data)
    with runs.staged_folder(folder) as staging:
        with (staging / runs.METRICS).open("w", encoding="utf-8") as metrics:
            result = compress(
                model,
                data,
                target=request.target,
                settings=settings,
                on_event=_recording(on_event, lambda row: _write_row(metrics, row)),
            )
        summary = result_of(result)
        _write(staging, result, _config(request, settings), summary)
        if data.preprocessing is not None:
            runs.write_json(staging / runs.PREPROCESSING, dict(data.preprocessing))
    return RunSummary(folder, summary)


def _settings(request: RunRequest) -> FinetuneSettings:
    loss: Any = request.loss
    if ":" in request.loss:
        loss = import_reference(request.loss, flag="--loss", error=InputError)
    return FinetuneSettings(loss=loss, **request.settings)


def _recording(on_event: OnEvent, record: Callable[[dict[str, Any]], None]) -> OnEvent:
    def both(event: ProgressEvent) -> None:
        if event.epoch_done:
            record(event.row())
        on_event(event)

    return both


def _write_row(metrics: Any, row: dict[str, Any]) -> None:
    metrics.write(json.dumps(row, allow_nan=False) + "\n")
    metrics.flush()


def _config(request: RunRequest, settings: FinetuneSettings) -> dict[str, Any]:
    source = request.source
    return {
        "model": str(source.path),
        "factory": source.factory,
        "factory_args": dict(source.factory_args),
        "data": str(request.data),
        "data_options": data_options(request.data),
        "target": str(request.target),
        "settings": {**asdict(settings), "loss": request.loss},
        "threads": torch.get_num_threads(),
        "versions": {
            "l0compress": version("l0compress"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def data_options(data: DataSource | str) -> dict[str, Any]:
    """What was said of the data besides their name, as plain values for JSON; nothing where all is as by default.

    Example:
        >>> data_options(DataSource("houses.csv", target_column="price"))
        {'target_column': 'price'}
    """
    if isinstance(data, str):
        return {}
    given, default = asdict(data), asdict(DataSource(data.name))
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if value != default[name]
    }


def result_of(result: CompressResult) -> dict[str, Any]:
    """What came out, as plain values for JSON."""
    unit = result.target.unit
    return {
        "target": {"unit": unit, "limit": result.limit, "reached": result.small_cost.get(unit)},
        "dense": asdict(result.dense_cost),
        "small": asdict(result.small_cost),
        "val": result.val.to_json(),
        "test": None if result.test is None else result.test.to_json(),
        "equality": result.equality.to_json(),
        "epochs": len(result.history),
    }


def _write(staging: Path, result: CompressResult, config: dict[str, Any], summary: dict[str, Any]) -> None:
    export_pt2(result.dense, staging / runs.DENSE)
    export_pt2(result.masked, staging / runs.MASKED)
    export_pt2(result.small, staging / runs.SMALL, reference=result.masked)
    runs.write_json(staging / runs.PLAN, {"kept": result.plan.kept()})
    runs.write_json(staging / runs.CONFIG, config)
    runs.write_json(staging / runs.RESULT, summary)
