"""Time artifacts in turns: one alone, one against the dense model of its run, or every form that a run can take."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from l0compress.export.bundle import BundleSettings, export_bundle
from l0compress.export.bundle_session import SUFFIX, is_bundle
from l0compress.export.huggingface.session import is_model_folder
from l0compress.export.onnx import export_onnx
from l0compress.export.providers import CPU, check_provider, on_provider
from l0compress.export.pt2 import captured_pt2
from l0compress.export.whys import ternary_words
from l0compress.graph.capture import CapturedGraph
from l0compress.measure.bench import BATCH_SIZES, BenchReport, bench
from l0compress.measure.footprint import footprint
from l0compress.measure.forms import form_tables
from l0compress.measure.pareto import Tradeoff
from l0compress.measure.report import Measured, bench_table, bundle_table
from l0compress.measure.table import Table
from l0compress.pipeline.artifacts import Verification, existing_artifact, verify_against
from l0compress.pipeline.bench_forms import BUNDLE, DENSE, INT8, ROUNDED, SMALL, add_int8_, tradeoff_of
from l0compress.pipeline.kept_bench import keep_bench
from l0compress.pipeline.quantizing import not_named, origin_of, score_files
from l0compress.pipeline.run_result import measured, metric_name
from l0compress.pipeline.runs import FinishedRun, is_run, made_from, open_run, reading_of
from l0compress.progress import Stages
from l0compress.training.evaluation import Evaluation
from l0compress.training.reading import Reading
from l0compress_runtime.bundle import read_manifest
from l0compress_runtime.manifest import Manifest

# Seconds that parts of a job take, roughly: only how they compare matters.
_FILE, _BATCH, _FOOTPRINT, _SCORE = 1.5, 6.0, 4.0, 0.5
_NO_INT8 = "Only ONNX files have an int8 form; give an .onnx artifact to compare with it."


@dataclass(frozen=True)
class ArtifactBench:
    """What :func:`bench_artifact` measured.

    Attributes:
        report: the timings, in turns.
        run: what was compared with, if that was a run.
        verification: of the artifact against the run, if both were given.
        scores: each form's result on the part of the data that the run's own metrics are of, by running its file. A
            form that has none shows what the run measured.
        reading: what the scores mean.
        manifest: of the bundle among what was timed, if there is one.
        notes: what could not be made, and why.
        tradeoff: of the forms of a run, score against latency and size.
        provider: what ran the ONNX files when they were timed.
    """

    report: BenchReport
    run: FinishedRun | None = None
    verification: Verification | None = None
    scores: Mapping[str, Evaluation] = field(default_factory=dict)
    reading: Reading | None = None
    manifest: Manifest | None = None
    notes: tuple[str, ...] = ()
    tradeoff: Tradeoff | None = None
    provider: str = CPU

    def tables(self) -> tuple[Table, ...]:
        """What to print."""
        layers = (bundle_table(self.manifest),) if self.manifest is not None and self.manifest.layers else ()
        *tables, last = (bench_table(self.report),) if self.run is None else self._comparison(self.run)
        if self.provider != CPU:
            last = replace(last, notes=(*last.notes, f"ONNX files are run by the provider {self.provider}."))
        return (*tables, last, *layers)

    def _comparison(self, run: FinishedRun) -> tuple[Table, ...]:
        *tables, last = form_tables(
            [self._measured(run, name) for name in self.report.file_bytes],
            metric_name=metric_name(run.result, self.reading),
            bench=self.report,
            title=f"The forms of {run.folder}",
        )
        ternary = None if self.manifest is None else ternary_words(self.manifest)
        notes = [*last.notes, *self.notes, *([] if ternary is None else [f"Of the bundle, {ternary}."])]
        if self.reading is not None and self.reading.meaning is not None:
            notes.append(self.reading.meaning)
        if self.verification is not None:
            difference = f"{self.verification.equality.max_relative:.1e}"
            notes.append(f"Small equals the masked dense model within {difference}, checked in this run.")
        return (*tables, replace(last, notes=tuple(notes)))

    def _measured(self, run: FinishedRun, name: str) -> Measured:
        known = measured(run.result, SMALL if name.startswith(SMALL) else DENSE)
        score = self.scores.get(name)
        return replace(
            known,
            name=name,
            metric=known.metric if score is None else score.metric,
            file_bytes=self.report.file_bytes[name],
            memory_bytes=self.report.memory_bytes.get(name),
            quantized=name.endswith(ROUNDED),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        about = {} if self.run is None else {"run": str(self.run.folder), **self.run.result}
        metrics = {name: score.metric for name, score in self.scores.items()}
        int8 = {name: metric for name, metric in metrics.items() if name.endswith(INT8)}
        score = None if self.reading is None else self.reading.score_name
        measured = {"score": score, "metrics": metrics, "int8_metrics": int8}
        return {
            **about,
            **measured,
            "notes": list(self.notes),
            "provider": self.provider,
            "bench": self.report.to_json(),
        }


@dataclass(frozen=True)
class Conditions:
    """What artifacts are timed under."""

    batch_sizes: Sequence[int]
    threads: int
    provider: str


def bench_artifact(
    artifact: Path,
    *,
    against: Path | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    threads: int = 2,
    provider: str = CPU,
) -> ArtifactBench:
    """Time an artifact, and in turns with it what it is compared with.

    Args:
        artifact: an ``.onnx`` or ``.pt2`` file, or a bundle; or a run folder, of which every form is made and timed.
        against: a run folder, whose dense model is timed in the same format (as ONNX beside a bundle), and as int8,
            after the artifact has been verified; or another artifact.
        batch_sizes: samples a call.
        threads: threads that each candidate computes with.
        provider: what runs ONNX files: ``cpu``, or what else ONNX Runtime has here, such as ``cuda``, or ``openvino``.

    Raises:
        InputError: the provider does not run files here.
        RunError: the artifact or what it is compared with cannot be read.
        NotEqualError: the artifact is not that of the run.
    """
    artifact, how = Path(artifact), Conditions(batch_sizes, threads, check_provider(provider))
    if is_run(artifact) and against is None:
        measured = _every_form(open_run(artifact), how)
    elif against is not None and is_run(Path(against)):
        measured = _against_run(artifact, made_from(Path(against), artifact), how)
    else:
        files = {artifact.name: artifact} if against is None else {str(path): path for path in (against, artifact)}
        for path in files.values():
            existing_artifact(path)
        measured = ArtifactBench(_timed(files, None, how), manifest=_manifest_of(artifact))
    return replace(measured, provider=provider)


def _against_run(artifact: Path, run: FinishedRun, how: Conditions) -> ArtifactBench:
    """Dense against an artifact, and against int8, which is what a user would pick instead."""
    checked = verify_against(artifact, run, provider=how.provider)
    if artifact.suffix == ".pt2" or is_model_folder(artifact):
        report = _timed({DENSE: run.dense, SMALL: artifact}, None, how)
        return ArtifactBench(report, run, checked, reading=reading_of(run.folder), notes=(_NO_INT8,))
    if not_named(run):
        return replace(_without_data(run, how, {SMALL: artifact}), verification=checked)
    stages = Stages([_FILE, 2 * _FILE, _timing(how.batch_sizes, 3), 3 * _SCORE])
    with stages.stage("reading the run"):
        origin = origin_of(run)
    kind = f" {checked.quantization.split()[0]}" if checked.quantization else BUNDLE if is_bundle(artifact) else ""
    with tempfile.TemporaryDirectory() as folder:
        with stages.stage("making dense and dense int8"):
            forms = {DENSE: export_onnx(origin.dense, Path(folder, "dense.onnx")).path}
            notes = add_int8_(forms, DENSE, origin.data.train)
        forms[SMALL + kind] = artifact
        with stages.stage("timing"):
            report = _timed(forms, origin.dense, how)
        with stages.stage("scoring"):
            scores = score_files(origin, forms)
    reading = origin.objective.reading
    return ArtifactBench(report, run, checked, scores, reading, manifest=_manifest_of(artifact), notes=notes)


def _without_data(run: FinishedRun, how: Conditions, artifacts: Mapping[str, Path] | None = None) -> ArtifactBench:
    """The forms that can be made without data, or artifacts beside the dense one: timed, and not scored again."""
    dense, manifest = captured_pt2(run.dense), None
    stages = Stages([6 * _FILE if artifacts is None else _FILE, _timing(how.batch_sizes, 3)])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as making:
        making.enter_context(stages.stage("making the forms"))
        forms = {DENSE: export_onnx(dense, Path(folder, "dense.onnx")).path, **(artifacts or {})}
        if artifacts is None:
            small, masked = captured_pt2(run.small), captured_pt2(run.masked)
            forms[SMALL] = export_onnx(small, Path(folder, "small.onnx"), reference=masked).path
            path, settings = Path(folder, f"small{SUFFIX}"), BundleSettings(threads=how.threads)
            bundle = export_bundle(small, path, reference=masked, batch_sizes=how.batch_sizes, settings=settings)
            forms[SMALL + BUNDLE], manifest = bundle.path, bundle.manifest
        making.close()
        with stages.stage("timing"):
            report = _timed(forms, dense, how)
    note = (
        f"The run was given its {' and '.join(not_named(run))} in Python: the scores are those that it measured "
        "itself, no form is scored again, and there are no int8 forms, which are compared on its data."
    )
    return ArtifactBench(report, run, reading=reading_of(run.folder), manifest=manifest, notes=(note,))


def _every_form(run: FinishedRun, how: Conditions) -> ArtifactBench:
    if not_named(run):
        return _without_data(run, how)
    stages = Stages([_FILE, 2 * _FILE, 2 * _FILE, 4 * _FILE, _timing(how.batch_sizes, 5), 5 * _SCORE])
    with stages.stage("reading the run"):
        small, masked, origin = captured_pt2(run.small), captured_pt2(run.masked), origin_of(run)
    train = origin.data.train
    with tempfile.TemporaryDirectory() as folder:
        with stages.stage("making dense and dense int8"):
            forms = {DENSE: export_onnx(origin.dense, Path(folder, "dense.onnx")).path}
            notes = add_int8_(forms, DENSE, train)
        with stages.stage("making small and small int8"):
            forms[SMALL] = export_onnx(small, Path(folder, "small.onnx"), reference=masked).path
            notes += add_int8_(forms, SMALL, train)
        path = Path(folder, f"small{SUFFIX}")
        settings = BundleSettings(threads=how.threads)
        with stages.stage("making the bundle"):
            bundle = export_bundle(small, path, reference=masked, batch_sizes=how.batch_sizes, settings=settings)
        forms[SMALL + BUNDLE] = bundle.path
        with stages.stage("timing"):
            report = _timed(forms, origin.dense, how)
        with stages.stage("scoring"):
            scores, objective = score_files(origin, forms), origin.objective
    score, reading = metric_name(run.result, objective.reading), objective.reading
    references = tuple(name for name in forms if name.startswith(DENSE))
    tradeoff = tradeoff_of(report, scores, score, objective.higher_is_better, references)
    notes += keep_bench(run.folder, report, tradeoff)
    return ArtifactBench(
        report, run, scores=scores, reading=reading, manifest=bundle.manifest, notes=notes, tradeoff=tradeoff
    )


def _timed(forms: Mapping[str, Path], inputs: CapturedGraph | None, how: Conditions) -> BenchReport:
    """Latency and memory of files, which get the example inputs of ``inputs``, or of the first that says some."""
    placed = {name: on_provider(path, how.provider) for name, path in forms.items()}
    stages = Stages([len(how.batch_sizes) * _BATCH, *[_FOOTPRINT] * len(forms)])
    with stages.stage("in turns"):
        report = bench(placed, inputs, batch_sizes=how.batch_sizes, threads=how.threads)
    largest, memory = max(report.batch_sizes), {}
    for name, path in forms.items():
        with stages.stage(f"memory of {name}"):
            memory[name] = footprint(path, batch_size=largest, threads=how.threads, provider=how.provider)
    return replace(report, memory_bytes=memory)


def _timing(batch_sizes: Sequence[int], forms: int) -> float:
    return len(batch_sizes) * _BATCH + forms * _FOOTPRINT


def _manifest_of(artifact: Path) -> Manifest | None:
    return read_manifest(artifact) if is_bundle(artifact) else None
