"""The table of forms, and forms against what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from l0compress.graph.groups.cost import Cost
from l0compress.measure.page.content import Cell, Form
from l0compress.measure.page.scatter import Mark, Scatter, scatter
from l0compress.measure.pareto import FILE, Point, Tradeoff
from l0compress.measure.report import ABSENT, as_count, as_share, in_ms
from l0compress.pipeline.bench_forms import INT8
from l0compress.pipeline.report.asked import clock
from l0compress.pipeline.report.told import DENSE, Told
from l0compress.pipeline.run_result import measured, targets_in

_UNITS = {"params": "parameters", "macs": "MACs"}


@dataclass(frozen=True)
class _Row:
    """What is known of one form."""

    name: str
    score: float | None
    cost: Cost | None
    weight_bytes: int | None = None


def columns_of(report: Told) -> tuple[str, ...]:
    """Return the headings of the table of forms."""
    common = ("form", report.score_name, "parameters", "MACs a sample")
    if report.bench is None:
        return (*common, "weight bytes")
    timed = (f"batch {size}, ms" for size in report.bench.report.batch_sizes)
    return (*common, "file bytes", *timed)


def forms_of(report: Told) -> tuple[Form, ...]:
    """Return a row for the dense model and for each small one; for every form that was timed, where that was done."""
    rows = list(_rows(report))
    dense = rows[0]
    return tuple(_form(report, row, dense) for row in rows)


def forms_note(report: Told) -> str:
    """Return how the numbers of the table were taken."""
    sparse = "Parameters and MACs are counted without the zeros in the weights. " if _is_sparse(report) else ""
    if report.bench is None:
        return f"{sparse}Shares are of the dense model. Times, files and int8 are shown after l0compress bench."
    threads = report.bench.report.threads
    return (
        f"{sparse}Shares are of the dense model. Medians of whole calls with {threads} "
        f"thread{'s' if threads != 1 else ''}, forms taking turns, on {report.bench.machine.get('cpu', 'a machine')}, "
        f"{clock(report.bench.time)}."
    )


def _rows(report: Told) -> Iterator[_Row]:
    known = {DENSE: measured(report.first.result, DENSE)}
    known |= {name: measured(run.result, "small", called=name) for name, run in report.members.items()}
    if report.tradeoff is None:
        for name, one in known.items():
            cost = one.without_zeros
            yield _Row(name, one.metric, cost, None if cost is None else cost.bytes)
        return
    for point in report.tradeoff.points:
        one = known.get(_model(point.name, known))
        yield _Row(point.name, point.score, None if one is None else one.without_zeros)


def _model(form: str, known: Iterable[str]) -> str:
    """The model that a form is one of: ``small`` of ``small int8``."""
    names = (
        [name for name in list(known) if form == name or form.startswith(f"{name} ")] if isinstance(known, dict) else []
    )
    return max(names, key=len, default="")


def _form(report: Told, row: _Row, dense: _Row) -> Form:
    cells = [Cell(ABSENT if row.score is None else f"{row.score:.4f}")]
    for unit in _UNITS:
        value = None if row.cost is None else getattr(row.cost, unit)
        whole = None if dense.cost is None else getattr(dense.cost, unit)
        cells.append(_counted(value, whole, is_first=row is dense))
    if report.bench is None:
        cells.append(_counted(row.weight_bytes, dense.weight_bytes, is_first=row is dense))
    else:
        timed = report.bench.report
        sizes = timed.file_bytes
        cells.append(_counted(sizes.get(row.name), sizes.get(dense.name), is_first=row is dense))
        for size in timed.batch_sizes:
            value = timed.timing(row.name, size).median_ms
            share = "" if row is dense else as_share(value, timed.timing(dense.name, size).median_ms)
            cells.append(Cell(in_ms(value), share))
    return Form(row.name, tuple(cells), highlighted=not row.name.startswith(DENSE))


def _counted(value: int | None, whole: int | None, *, is_first: bool) -> Cell:
    return Cell(as_count(value), "" if is_first or value is None else as_share(value, whole))


def _is_sparse(report: Told) -> bool:
    return any(run.result.get("nonzero") for run in report.members.values())


def scatters_of(report: Told) -> tuple[Scatter, ...]:
    """Return score over cost: of a family over MACs or what the target is on, of what was timed over time and size."""
    drawings = []
    if report.is_family:
        drawings.append(_over_cost(report))
    if report.tradeoff is not None:
        drawings += [_over(report.tradeoff, axis) for axis in report.tradeoff.axes]
    return tuple(drawings)


def _over_cost(report: Told) -> Scatter:
    unit = str(targets_in(report.first.result)[0]["unit"])
    unit = unit if unit in _UNITS else "macs"
    models = [measured(report.first.result, DENSE)]
    models += [measured(run.result, "small", called=name) for name, run in report.members.items()]
    points = tuple(
        Point(one.name, one.metric, getattr(one.without_zeros, unit))
        for one in models
        if one.metric is not None and one.without_zeros is not None
    )
    tradeoff = Tradeoff(points, report.score_name, report.higher_is_better, references=(DENSE,))
    return _drawn(tradeoff, FILE, f"{report.score_name} over {_UNITS[unit]}", *_scaled(tradeoff, FILE, _UNITS[unit]))


def _over(tradeoff: Tradeoff, axis: str) -> Scatter:
    what = "file size" if axis == FILE else f"latency at {axis}"
    name = "bytes" if axis == FILE else "ms"
    return _drawn(tradeoff, axis, f"{tradeoff.score_name} over {what}", *_scaled(tradeoff, axis, name))


def _scaled(tradeoff: Tradeoff, axis: str, name: str) -> tuple[float, str]:
    """The unit that prices are drawn in, so that few digits will do, and its name."""
    largest = max(point.price(axis) for point in tradeoff.points)
    if name == "ms":
        return 1.0, "median latency, ms"
    scale, prefix = next(((s, p) for s, p in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= s), (1.0, ""))
    if name == "bytes":
        return scale, f"{prefix}B"
    names = {"G": "billions of ", "M": "millions of ", "k": "thousands of ", "": ""}
    return scale, names[prefix] + name


def _drawn(tradeoff: Tradeoff, axis: str, title: str, scale: float, unit: str) -> Scatter:
    front = tradeoff.front(axis)
    marks = [
        Mark(
            point.name,
            point.price(axis) / scale,
            point.score,
            reference=point.name in tradeoff.references,
            quantized=point.name.endswith(INT8),
            unbeaten=point in front,
        )
        for point in tradeoff.points
    ]
    return scatter(title, marks, x_name=unit, y_name=tradeoff.score_name, higher_is_better=tradeoff.higher_is_better)
