"""Time an artifact, alone or in turns with the dense model of its run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0compress.bench import BATCH_SIZES, BenchReport, bench
from l0compress.calls import Call
from l0compress.export.bundled import BundleSession, is_bundle
from l0compress.export.onnx import export_onnx
from l0compress.pipeline.artifacts import load, verify_artifact
from l0compress.pipeline.runs import Run, measured, metric_name, open_run
from l0compress.pipeline.sources import captured_pt2
from l0compress.report import Table, bench_table, bundle_table, comparison_table
from l0compress.runtime.manifest import Manifest
from l0compress.verify import Equality

DENSE, SMALL = "dense", "small"


@dataclass(frozen=True)
class ArtifactBench:
    """What :func:`bench_artifact` measured; ``run`` and ``equality`` are None without a run to compare with.

    ``manifest`` is that of the artifact where it is a bundle.
    """

    report: BenchReport
    run: Run | None = None
    equality: Equality | None = None
    manifest: Manifest | None = None

    def tables(self) -> tuple[Table, ...]:
        """What to print."""
        if self.run is None or self.equality is None:
            return (bench_table(self.report), *self._layers())
        sizes = self.report.file_bytes
        table = comparison_table(
            measured(self.run.result, DENSE, file_bytes=sizes[DENSE]),
            measured(self.run.result, SMALL, file_bytes=sizes[SMALL]),
            metric_name=metric_name(self.run.result),
            bench=self.report,
            title="Dense against small",
        )
        note = f"Small equals the masked dense model within {self.equality.max_relative:.1e}, checked in this run."
        return (Table(table.title, table.columns, table.rows, (*table.notes, note)), *self._layers())

    def _layers(self) -> tuple[Table, ...]:
        return () if self.manifest is None else (bundle_table(self.manifest),)

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        about = {} if self.run is None else {"run": str(self.run.folder), **self.run.result}
        return {**about, "bench": self.report.to_json()}


def bench_artifact(
    artifact: Path, *, against: Path | None = None, batch_sizes: Sequence[int] = BATCH_SIZES, threads: int = 2
) -> ArtifactBench:
    """Time an artifact, and in turns with it what it is compared with.

    Args:
        artifact: an ``.onnx`` or ``.pt2`` file, or a bundle.
        against: a run folder, whose dense model is timed in the same format (as ONNX beside a bundle) after the
            artifact has been verified; or another artifact.
        batch_sizes: samples a call.
        threads: threads that each candidate computes with.

    Raises:
        RunError: the artifact or what it is compared with cannot be read.
        NotEqualError: the artifact is not that of the run.
    """
    artifact = Path(artifact)
    if against is None:
        model = load(artifact)
        report = bench({artifact.name: artifact}, batch_sizes=batch_sizes, threads=threads)
        return ArtifactBench(report, manifest=_manifest_of(model))
    if Path(against).is_dir() and not is_bundle(Path(against)):
        return _against_run(artifact, open_run(against), batch_sizes, threads)
    models = [load(path) for path in (Path(against), artifact)]
    candidates = {str(against): Path(against), str(artifact): artifact}
    report = bench(candidates, batch_sizes=batch_sizes, threads=threads)
    return ArtifactBench(report, manifest=_manifest_of(models[1]))


def _manifest_of(model: Any) -> Manifest | None:
    return model.bundle.manifest if isinstance(model, BundleSession) else None


def _against_run(artifact: Path, run: Run, batch_sizes: Sequence[int], threads: int) -> ArtifactBench:
    equality = verify_artifact(artifact, run=run.folder).equality
    dense = captured_pt2(run.dense)
    call = Call(dense.example_args, dense.example_kwargs)
    with tempfile.TemporaryDirectory() as folder:
        path = run.dense
        if artifact.suffix == ".onnx" or is_bundle(artifact):
            path = export_onnx(dense, Path(folder, "dense.onnx")).path
        report = bench({DENSE: path, SMALL: artifact}, call, batch_sizes=batch_sizes, threads=threads)
    return ArtifactBench(report, run, equality, _manifest_of(load(artifact)))
