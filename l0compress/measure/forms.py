"""Forms of a model as rows, narrow enough for a terminal: what they cost, how fast they are, how slow at worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from l0compress.measure.report import ABSENT, Measured, as_count, as_share, in_ms, thread_note
from l0compress.measure.slower import slower_notes
from l0compress.measure.table import Table

if TYPE_CHECKING:
    from l0compress.measure.bench import BenchReport

_SHARE = "%"


def form_tables(
    models: Sequence[Measured], *, metric_name: str = "accuracy", bench: BenchReport | None = None, title: str = ""
) -> tuple[Table, ...]:
    """Return a table of scores and sizes, and where forms were timed one of medians and one of the slowest calls.

    A row is a form, the first what the others are compared with: each share is of it, in percent.

    Example:
        >>> from l0compress.graph.groups.cost import Cost
        >>> dense, small = Measured("dense", Cost(1000, 2000, 4000), 0.9), Measured("small", Cost(250, 500, 1000), 0.8)
        >>> print(form_tables([dense, small])[0].to_markdown())
        |  | score | params | % | MACs | % | weights | % |
        |---|---:|---:|---:|---:|---:|---:|---:|
        | dense | 0.9000 | 1,000 |  | 2,000 |  | 4,000 B |  |
        | small | 0.8000 | 250 | 25.0 | 500 | 25.0 | 1,000 B | 25.0 |
        <BLANKLINE>
        score: accuracy. %: of dense.
    """
    sizes = _sizes(models, metric_name, title)
    if bench is None:
        return (sizes,)
    return sizes, _medians(models, bench), _slowest(models, bench)


def _sizes(models: Sequence[Measured], metric_name: str, title: str) -> Table:
    columns: list[tuple[str, list[str]]] = []
    if any(model.metric is not None for model in models):
        columns.append(("score", [ABSENT if model.metric is None else f"{model.metric:.4f}" for model in models]))
    sparse = any(model.nonzero for model in models)
    costs = [model.without_zeros for model in models]
    columns += _with_shares("nonzero" if sparse else "params", [cost and cost.params for cost in costs], as_short)
    columns += _with_shares("MACs", [cost and cost.macs for cost in costs], as_short)
    if any(model.file_bytes is not None for model in models):
        columns += _with_shares("file", [model.file_bytes for model in models], in_bytes)
    else:
        columns += _with_shares("weights", [cost and cost.bytes for cost in costs], in_bytes)
    named = f"score: {metric_name}. " if columns[0][0] == "score" else ""
    zeros = " nonzero, MACs: without the zeros in the weights." if sparse else ""
    return _table(title, models, columns, (f"{named}%: of {models[0].name}.{zeros}",))


def _medians(models: Sequence[Measured], bench: BenchReport) -> Table:
    columns: list[tuple[str, list[str]]] = []
    for size in bench.batch_sizes:
        timings = [bench.timing(model.name, size).median_ms for model in models]
        columns += _with_shares(f"batch {size}", timings, in_ms)
    return _table("Median milliseconds", models, columns, (thread_note(bench), *slower_notes(bench, models)))


def _slowest(models: Sequence[Measured], bench: BenchReport) -> Table:
    columns = [
        (f"batch {size}", [in_ms(bench.timing(model.name, size).p95_ms) for model in models])
        for size in bench.batch_sizes
    ]
    if not any(model.memory_bytes for model in models):
        return _table("Milliseconds that 95 % of the calls take at most", models, columns, ())
    columns.append(("memory", [in_bytes(model.memory_bytes) for model in models]))
    return _table("Milliseconds that 95 % of the calls take at most, and memory", models, columns, ())


def _with_shares(name: str, values: Sequence[Any], text: Callable[[Any], str]) -> list[tuple[str, list[str]]]:
    """A column of values, and one of what share of the first each of the others is."""
    shares = [as_share(value, values[0]).removesuffix(" %") for value in values[1:]]
    return [(name, [ABSENT if value is None else text(value) for value in values]), (_SHARE, ["", *shares])]


def _table(
    title: str, models: Sequence[Measured], columns: Sequence[tuple[str, list[str]]], notes: tuple[str, ...]
) -> Table:
    rows = zip((model.name for model in models), *(cells for _, cells in columns), strict=True)
    return Table(title, ("", *(name for name, _ in columns)), tuple(rows), notes)


def as_short(value: int | None) -> str:
    """A count in a few characters, exact below a million.

    >>> as_short(937_216), as_short(40_551_040), as_short(7_240_000_000), as_short(None)
    ('937,216', '40.55 M', '7.24 G', '—')
    """
    if value is None or value < 1_000_000:
        return as_count(value)
    unit, name = next((unit, name) for unit, name in ((10**12, "T"), (10**9, "G"), (10**6, "M")) if value >= unit)
    return f"{value / unit:.2f} {name}"


def in_bytes(value: int | None) -> str:
    """A size in a few characters, exact below ten thousand bytes.

    >>> in_bytes(4_000), in_bytes(251_528), in_bytes(90_931_204), in_bytes(None)
    ('4,000 B', '251.5 kB', '90.9 MB', '—')
    """
    if value is None:
        return ABSENT
    scale, name = next(((s, n) for s, n in ((1e9, "GB"), (1e6, "MB"), (1e4, "kB")) if value >= s), (1, "B"))
    return f"{value:,} B" if scale == 1 else f"{value / (1e3 if name == 'kB' else scale):.1f} {name}"
