"""Time artifacts in turns: one alone, one against the dense model of its run, or every form that a run can take."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l0compress.bench import BATCH_SIZES, BenchReport, bench
from l0compress.calls import Call
from l0compress.errors import SurgeryError
from l0compress.export.onnx import export_onnx
from l0compress.export.quantize import Int8
from l0compress.footprint import footprint
from l0compress.pipeline.artifacts import Verification, load, verify_artifact
from l0compress.pipeline.quantizing import quantized_file, run_data, score_files
from l0compress.pipeline.runs import Run, is_run, measured, metric_name, open_run
from l0compress.pipeline.sources import captured_pt2
from l0compress.report import Measured, Table, bench_table, comparison_table
from l0compress.training.course import Evaluation

DENSE, SMALL = "dense", "small"
INT8 = " int8"


@dataclass(frozen=True)
class ArtifactBench:
    """What :func:`bench_artifact` measured.

    Attributes:
        report: the timings, in turns.
        run: what was compared with, if that was a run.
        verification: of the artifact against the run, if both were given.
        int8_scores: each int8 form's result on the part of the data that the run's own metrics are of.
        notes: what could not be made, and why.
    """

    report: BenchReport
    run: Run | None = None
    verification: Verification | None = None
    int8_scores: Mapping[str, Evaluation] | None = None
    notes: tuple[str, ...] = ()

    def tables(self) -> tuple[Table, ...]:
        """What to print."""
        if self.run is None:
            return (bench_table(self.report),)
        models = [self._measured(self.run, name) for name in self.report.file_bytes]
        table = comparison_table(
            *models,
            metric_name=metric_name(self.run.result),
            bench=self.report,
            title=f"The forms of {self.run.folder}",
        )
        notes = [*table.notes, *self.notes]
        if self.verification is not None:
            difference = f"{self.verification.equality.max_relative:.1e}"
            notes.append(f"Small equals the masked dense model within {difference}, checked in this run.")
        return (Table(table.title, table.columns, table.rows, tuple(notes)),)

    def _measured(self, run: Run, name: str) -> Measured:
        known = measured(run.result, SMALL if name.startswith(SMALL) else DENSE)
        score = (self.int8_scores or {}).get(name)
        return replace(
            known,
            name=name,
            metric=known.metric if score is None else score.metric,
            file_bytes=self.report.file_bytes[name],
            memory_bytes=self.report.memory_bytes.get(name),
            quantized=name.endswith(INT8),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        about = {} if self.run is None else {"run": str(self.run.folder), **self.run.result}
        scores = {name: score.metric for name, score in (self.int8_scores or {}).items()}
        return {**about, "int8_metrics": scores, "notes": list(self.notes), "bench": self.report.to_json()}


def bench_artifact(
    artifact: Path, *, against: Path | None = None, batch_sizes: Sequence[int] = BATCH_SIZES, threads: int = 2
) -> ArtifactBench:
    """Time an artifact, and in turns with it what it is compared with.

    Args:
        artifact: an ``.onnx`` or ``.pt2`` file; or a run folder, of which every form is made and timed.
        against: a run folder, whose dense model is timed in the same format, and as int8, after the artifact has been
            verified; or another artifact.
        batch_sizes: samples a call.
        threads: threads that each candidate computes with.

    Raises:
        RunError: the artifact or what it is compared with cannot be read.
        NotEqualError: the artifact is not that of the run.
    """
    artifact = Path(artifact)
    if is_run(artifact) and against is None:
        return _forms_of(open_run(artifact), None, batch_sizes, threads)
    if against is None:
        load(artifact)
        report = bench({artifact.name: artifact}, batch_sizes=batch_sizes, threads=threads)
        return ArtifactBench(_with_memory(report, {artifact.name: artifact}))
    if Path(against).is_dir():
        return _forms_of(open_run(against), artifact, batch_sizes, threads)
    for path in (Path(against), artifact):
        load(path)
    candidates = {str(against): Path(against), str(artifact): artifact}
    report = bench(candidates, batch_sizes=batch_sizes, threads=threads)
    return ArtifactBench(_with_memory(report, candidates))


def _forms_of(run: Run, artifact: Path | None, batch_sizes: Sequence[int], threads: int) -> ArtifactBench:
    """Dense against small, and both against int8, which is what a user would pick instead."""
    checked = None if artifact is None else verify_artifact(artifact, run=run.folder)
    small = SMALL + INT8 if checked is not None and checked.quantization else SMALL
    dense = captured_pt2(run.dense)
    call = Call(dense.example_args, dense.example_kwargs)
    with tempfile.TemporaryDirectory() as folder:
        forms = {DENSE: run.dense, small: artifact or Path(folder, "small.onnx")}
        if forms[small].suffix != ".pt2":
            forms[DENSE] = export_onnx(dense, Path(folder, "dense.onnx")).path
        if artifact is None:
            export_onnx(captured_pt2(run.small), forms[small], reference=captured_pt2(run.masked))
        added, notes = _int8_forms(run, forms, (DENSE, SMALL) if artifact is None else (DENSE,))
        forms = {name: path for base in (DENSE, SMALL) for name, path in {**forms, **added}.items() if base in name}
        report = _with_memory(bench(forms, call, batch_sizes=batch_sizes, threads=threads), forms)
        scores = score_files(run, {name: path for name, path in forms.items() if name.endswith(INT8)})
    return ArtifactBench(report, run, checked, scores, notes)


def _int8_forms(run: Run, forms: Mapping[str, Path], names: Sequence[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The int8 forms of some of the forms, and what to say of those that have none."""
    if forms[DENSE].suffix != ".onnx":
        return {}, ("ONNX files alone have an int8 form; give an .onnx artifact to compare with it.",)
    train, found, notes = run_data(run).train, {}, []
    for name in names:
        target = forms[DENSE].with_name(f"{name}.int8.onnx")
        try:
            quantized_file(forms[name], target, train, Int8())
        except SurgeryError as reason:
            notes.append(f"No int8 form of {name}: {reason}")
        else:
            found[name + INT8] = target
    return found, tuple(notes)


def _with_memory(report: BenchReport, candidates: Mapping[str, Path]) -> BenchReport:
    largest = max(report.batch_sizes)
    memory = {name: footprint(path, batch_size=largest, threads=report.threads) for name, path in candidates.items()}
    return replace(report, memory_bytes=memory)
