"""Time a family in turns: every member as a file, in float and in int8, beside the dense model in both."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l0compress.export.bundle import BundleSettings, export_bundle
from l0compress.export.bundle_session import SUFFIX
from l0compress.export.onnx import export_onnx
from l0compress.export.providers import CPU, check_provider, on_provider
from l0compress.export.pt2 import captured_pt2
from l0compress.measure.bench import BATCH_SIZES, BenchReport, bench
from l0compress.measure.forms import form_tables
from l0compress.measure.pareto import Tradeoff, unbeaten_notes
from l0compress.measure.report import Measured
from l0compress.measure.table import Table
from l0compress.pipeline.bench_forms import BUNDLE, DENSE, INT8, add_int8_, tradeoff_of
from l0compress.pipeline.kept_bench import keep_bench
from l0compress.pipeline.quantizing import origin_of, score_files
from l0compress.pipeline.run_result import measured, metric_name
from l0compress.pipeline.runs import FinishedFamily, FinishedRun, open_family
from l0compress.progress import Stages
from l0compress.training.evaluation import Evaluation
from l0compress.training.reading import Reading


@dataclass(frozen=True)
class FamilyBench:
    """What :func:`bench_family` measured.

    Attributes:
        family: what was timed.
        report: the timings, in turns.
        scores: each form's result on the part of the data that the runs' own metrics are of, by running its file.
        reading: what the scores mean.
        tradeoff: score against latency and size.
        notes: what could not be made, and why.
    """

    family: FinishedFamily
    report: BenchReport
    scores: Mapping[str, Evaluation]
    reading: Reading
    tradeoff: Tradeoff
    notes: tuple[str, ...] = ()

    def tables(self) -> tuple[Table, ...]:
        """What to print."""
        first, *others = form_tables(
            self._measured(),
            metric_name=self.tradeoff.score_name,
            bench=self.report,
            title=f"The family {self.family.folder}",
        )
        meaning = () if self.reading.meaning is None else (self.reading.meaning,)
        notes = (*first.notes, *unbeaten_notes(self.tradeoff), *meaning)
        # Why each of so many is slower at each batch size would be longer than all else.
        medians, last = (replace(table, notes=table.notes[:1]) for table in others)
        return replace(first, notes=notes), medians, replace(last, notes=(*last.notes, *self.notes))

    def _measured(self) -> list[Measured]:
        """Every form that was timed, with the cost of the model that it is one of."""
        known = {DENSE: measured(self.family.members[0].result, DENSE)}
        known |= {one.folder.name: measured(one.result, "small", called=one.folder.name) for one in self.family.members}
        return [
            replace(
                known[name.removesuffix(BUNDLE).removesuffix(INT8)],
                name=name,
                metric=score.metric,
                file_bytes=self.report.file_bytes[name],
                quantized=name.endswith(INT8),
            )
            for name, score in self.scores.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "run": str(self.family.folder),
            "members": [{"run": str(member.folder), **member.result} for member in self.family.members],
            "score": self.reading.score_name,
            "metrics": {name: score.metric for name, score in self.scores.items()},
            "unbeaten": self.tradeoff.to_json(),
            "notes": list(self.notes),
            "bench": self.report.to_json(),
        }


def bench_family(
    folder: Path, *, batch_sizes: Sequence[int] = BATCH_SIZES, threads: int = 2, provider: str = CPU
) -> FamilyBench:
    """Time and score the members of a family, and the dense model, as ONNX files in float and in int8.

    A member with zeros among its weights is timed as a bundle too, which is what makes use of them.

    Raises:
        InputError: the provider does not run files here.
        RunError: it is no finished family, or is damaged.
        NotEqualError: what is made of a member is not equal to it.
    """
    check_provider(provider)
    family = open_family(folder)
    stages = Stages([1, *[3] * (1 + len(family.members)), 8 * len(batch_sizes), 1 + len(family.members)])
    with stages.stage("reading the run"):
        origin = origin_of(family.members[0])
    settings = BundleSettings(threads=threads)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        with stages.stage("making dense and dense int8"):
            forms = {DENSE: export_onnx(origin.dense, place / f"{DENSE}.onnx").path}
            notes = add_int8_(forms, DENSE, origin.data.train)
        references = tuple(forms)
        for member in family.members:
            name = member.folder.name
            with stages.stage(f"making {name}"):
                small, masked = captured_pt2(member.small), captured_pt2(member.masked)
                forms[name] = export_onnx(small, place / f"{name}.onnx", reference=masked).path
                notes += add_int8_(forms, name, origin.data.train)
                if has_zeros(member):
                    path = place / f"{name}{SUFFIX}"
                    bundle = export_bundle(small, path, reference=masked, batch_sizes=batch_sizes, settings=settings)
                    forms[name + BUNDLE] = bundle.path
        placed = {name: on_provider(path, provider) for name, path in forms.items()}
        with stages.stage("timing"):
            report = bench(placed, origin.dense, batch_sizes=batch_sizes, threads=threads)
        with stages.stage("scoring"):
            scores = score_files(origin, forms)
    objective = origin.objective
    score_name = metric_name(family.members[0].result, objective.reading)
    tradeoff = tradeoff_of(report, scores, score_name, objective.higher_is_better, references)
    notes += keep_bench(folder, report, tradeoff)
    return FamilyBench(family, report, scores, objective.reading, tradeoff, notes)


def has_zeros(run: FinishedRun) -> bool:
    """Whether single weights were removed."""
    return run.result.get("nonzero") is not None
