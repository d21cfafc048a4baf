"""Results as tables: plain values, which the command line draws and a README quotes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from l0compress.graph.groups.cost import Cost
from l0compress.measure.slower import slower_notes
from l0compress.measure.table import Table

if TYPE_CHECKING:
    from l0compress.measure.bench import BenchReport, Timing
    from l0compress.verification.equality import Equality
    from l0compress_runtime.manifest import Manifest, SparseStep

ABSENT = "—"


@dataclass(frozen=True)
class Measured:
    """What is known of one model; None where it was not measured.

    Attributes:
        name: heading of its column, and its name in the bench report.
        cost: parameters, multiply-accumulates and bytes of weights.
        metric: the task's metric on held-out data, such as accuracy between 0 and 1.
        file_bytes: size of its artifact.
        memory_bytes: what loading and running it adds to a process.
        quantized: its weights are stored in fewer bytes than ``cost`` counts.
        nonzero: what it costs when the zeros in its weights are left out, where it has any to speak of.
    """

    name: str
    cost: Cost | None = None
    metric: float | None = None
    file_bytes: int | None = None
    memory_bytes: int | None = None
    quantized: bool = False
    nonzero: Cost | None = None

    @property
    def without_zeros(self) -> Cost | None:
        """The cost without zeros; a model that has none to speak of costs what it costs."""
        return self.cost if self.nonzero is None else self.nonzero


_Count = tuple[str, Callable[[Measured], int | None]]
_COUNTS: tuple[_Count, ...] = (
    ("parameters", lambda model: model.cost.params if model.cost else None),
    ("MACs per sample", lambda model: model.cost.macs if model.cost else None),
    ("weight bytes", lambda model: model.cost.bytes if model.cost and not model.quantized else None),
    ("file bytes", lambda model: model.file_bytes),
    ("memory bytes", lambda model: model.memory_bytes),
)
_SPARSE_COUNTS: tuple[_Count, ...] = (
    ("nonzero parameters", lambda model: model.without_zeros.params if model.without_zeros else None),
    ("MACs with nonzero weights", lambda model: model.without_zeros.macs if model.without_zeros else None),
    ("weight bytes without zeros", lambda model: model.without_zeros.bytes if model.without_zeros else None),
)


def comparison_table(
    *models: Measured, metric_name: str = "accuracy", bench: BenchReport | None = None, title: str = ""
) -> Table:
    """Models side by side: the metric, what each costs, and how long each takes; the first is what the others are
    compared with.

    Of two models the last column is the second as a share of the first; of more, each cell says its own share.
    Latencies are those of the candidates of the same names in ``bench``. Where a smaller model is slower, a
    note says why.

    Example:
        >>> dense, small = Measured("dense", Cost(1000, 2000, 4000)), Measured("small", Cost(250, 500, 1000))
        >>> comparison_table(dense, small).rows[0]
        ('parameters', '1,000', '250', '25.0 %')
        >>> comparison_table(dense, small, Measured("smaller", Cost(100, 200, 400))).rows[0]
        ('parameters', '1,000', '250 (25.0 %)', '100 (10.0 %)')
    """
    rows: list[tuple[str, ...]] = []
    if any(model.metric is not None for model in models):
        cells = (ABSENT if model.metric is None else f"{model.metric:.4f}" for model in models)
        rows.append((metric_name, *cells, *([""] if len(models) == 2 else [])))
    for label, count in (*_COUNTS, *(_SPARSE_COUNTS if any(model.nonzero for model in models) else ())):
        counts = [count(model) for model in models]
        if any(value is not None for value in counts):
            rows.append((label, *_shared(counts, as_count)))
    columns = ("", *(model.name for model in models), *(["share"] if len(models) == 2 else []))
    if bench is None:
        return Table(title, columns, tuple(rows))
    names = [model.name for model in models]
    rows += [row for size in bench.batch_sizes for row in _latency_rows(bench, names, size)]
    return Table(title, columns, tuple(rows), (thread_note(bench), *slower_notes(bench, models)))


def _latency_rows(bench: BenchReport, names: Sequence[str], batch_size: int) -> list[tuple[str, ...]]:
    timings = [bench.timing(name, batch_size) for name in names]
    rows = [
        (f"latency median, batch {batch_size} (ms)", *_shared([timing.median_ms for timing in timings], in_ms)),
        (f"latency p95, batch {batch_size} (ms)", *_shared([timing.p95_ms for timing in timings], in_ms)),
    ]
    if len(names) > 2:
        throughputs = [timing.samples_per_second for timing in timings]
        rows.append((f"samples/s, batch {batch_size}", *_shared(throughputs, lambda value: f"{value:,.0f}")))
    return rows


def _shared(values: Sequence[Any], text: Callable[[Any], str]) -> tuple[str, ...]:
    """The cells of one row: each value, and its share of the first one."""
    first, *others = values
    if len(others) == 1:
        return _cell(first, text), _cell(others[0], text), as_share(others[0], first)
    shares = (
        _cell(value, text) if value is None or not first else f"{text(value)} ({as_share(value, first)})"
        for value in others
    )
    return _cell(first, text), *shares


def _cell(value: Any, text: Callable[[Any], str]) -> str:
    return ABSENT if value is None else text(value)


def bench_table(report: BenchReport, *, title: str = "Latency") -> Table:
    """Every timing of a report: artifact, file size, batch size, median, p95, throughput."""

    def row(timing: Timing) -> tuple[str, ...]:
        return (
            timing.name,
            as_count(report.file_bytes.get(timing.name)),
            str(timing.batch_size),
            in_ms(timing.median_ms),
            in_ms(timing.p95_ms),
            f"{timing.samples_per_second:,.0f}",
        )

    columns = ("model", "file bytes", "batch", "median ms", "p95 ms", "samples/s")
    ordered = [timing for size in report.batch_sizes for timing in report.timings if timing.batch_size == size]
    return Table(title, columns, tuple(row(timing) for timing in ordered), (thread_note(report),))


def bundle_table(manifest: Manifest, *, title: str = "Sparse layers, as timed at export") -> Table:
    """Every layer of a bundle: its zeros, and which form each batch size uses beside what it was compared with."""
    sizes = [size for size, _ in manifest.choices]
    timed = {(timing.layer, timing.batch_size): timing.median_ms for timing in manifest.layer_timings}
    used = {
        (step.part, size): step.engine or "dense" for size, plan in manifest.choices for step in manifest.plans[plan]
    }

    def cell(layer: str, size: int) -> str:
        medians = timed.get((layer, size), {})
        others = ", ".join(f"{name} {in_ms(ms)}" for name, ms in sorted(medians.items(), key=lambda item: item[1]))
        return f"{used.get((layer, size), 'dense')} ({others})" if others else used.get((layer, size), "dense")

    def zeros(layer: SparseStep) -> str:
        specs = [manifest.tensors[weight] for weight in layer.weights]
        nonzeros = sum(spec.size if spec.nonzeros is None else spec.nonzeros for spec in specs)
        return f"{100 * (1 - nonzeros / sum(spec.size for spec in specs)):.1f} %"

    # In the order of the graph, which the numbers of the layers are: l2 comes before l13.
    layers = sorted(manifest.layers.items(), key=lambda item: (len(item[0]), item[0]))
    rows = tuple((layer.name, zeros(layer), *(cell(name, size) for size in sizes)) for name, layer in layers)
    notes = [f"{name}: {why}" for name, why in manifest.whys.items() if name not in {row[0] for row in rows}]
    if manifest.plan_timings:
        whole = ", ".join(
            f"{in_ms(timing.chosen_ms)} at batch {timing.batch_size} (dense {in_ms(timing.dense_ms)})"
            for timing in manifest.plan_timings
        )
        notes.insert(0, f"Median milliseconds, {manifest.about.get('threads')} threads. The whole model: {whole}.")
    return Table(title, ("layer", "zeros", *(f"batch {size}" for size in sizes)), rows, tuple(notes))


def equality_table(equality: Equality, *, title: str = "Equality") -> Table:
    """How closely each output agreed."""
    rows = tuple(
        (output.name, f"{output.max_absolute:.1e}", f"{output.max_relative:.1e}", f"{output.tolerance:.0e}")
        for output in equality.outputs
    )
    notes = [f"Compared at batch sizes {', '.join(str(size) for size in equality.batch_sizes)}."]
    if equality.zero_outputs:
        names = ", ".join(equality.zero_outputs)
        notes.append(f"All zero in the reference, so equality says little about: {names}.")
    return Table(title, ("output", "max absolute", "max relative", "allowed relative"), rows, tuple(notes))


def thread_note(report: BenchReport) -> str:
    """How latencies were taken, in a sentence."""
    fewest = min(timing.num_calls for timing in report.timings)
    threads = f"{report.threads} thread{'s' if report.threads != 1 else ''}"
    return f"Latency of whole calls with {threads}, {fewest} or more timed calls each, models taking turns."


def as_count(value: int | None) -> str:
    """A count with separators."""
    return ABSENT if value is None else f"{value:,}"


def as_share(part: float | None, whole: float | None) -> str:
    """A part as a share of a whole."""
    return ABSENT if part is None or not whole else f"{100 * part / whole:.1f} %"


def in_ms(value: float) -> str:
    """A latency."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
