"""Forms as rows: what they say, and that a terminal of 80 columns holds them."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from l0compress.cli import render
from l0compress.graph.groups.cost import Cost
from l0compress.measure.bench import BenchReport, Timing
from l0compress.measure.forms import form_tables
from l0compress.measure.report import Measured
from l0compress.measure.table import Table

NAMES = ("dense", "dense int8", "int8_bytes=0.125", "int8_bytes=0.125 int8", "int8_bytes=0.125 bundle")
SIZES = (1, 8, 64)


def models(*, nonzero: bool = False) -> list[Measured]:
    """As large as a language model, whose numbers are the widest."""
    cost = Cost(7_240_000_000, 344_605_440, 28_960_000_000, 7_300_000_000)
    return [
        Measured(name, cost, 0.8726, 90_900_000, 1_717_133_568, nonzero=cost if nonzero and number else None)
        for number, name in enumerate(NAMES)
    ]


def report() -> BenchReport:
    timings = tuple(Timing(name, size, 100, 1234.5, 2345.6, 1.0) for size in SIZES for name in NAMES)
    return BenchReport(2, timings, dict.fromkeys(NAMES, 90_900_000))


def on_terminal(table: Table, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    console = Console(file=StringIO(), force_terminal=True, width=80, color_system=None, _environ={"TERM": "xterm"})
    monkeypatch.setattr(render, "output", lambda: console)
    render.print_table(table)
    return console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("nonzero", [False, True])
def test_every_row_is_one_line_of_at_most_80_columns(nonzero: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = form_tables(models(nonzero=nonzero), metric_name="validation relative squared error", bench=report())
    assert len(tables) == 3
    for table in tables:
        lines = on_terminal(table, monkeypatch)
        assert max(map(len, lines)) <= 80
        assert len([line for line in lines if line.strip(" │").startswith(NAMES)]) == len(NAMES)


def test_notes_are_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    note = "Unbeaten: no other form is better without being dearer, or cheaper without being worse, at any batch size."
    lines = on_terminal(Table("", ("", "a"), (("b", "c"),), (note,)), monkeypatch)
    assert " ".join(lines[-2:]) == note and max(map(len, lines)) <= 80


def test_what_is_wider_than_any_terminal_goes_on_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "encoder.layers.11.attention.self.query_key_value_projection.parametrizations.weight"
    lines = on_terminal(Table("", ("layer", "zeros", "batch 1"), ((name, "98.0 %", "numba"),)), monkeypatch)
    assert f"  {name}" in lines and any("98.0 %" in line and "numba" in line for line in lines)


def test_shares_are_of_the_first_form() -> None:
    timings = tuple(Timing(name, 1, 9, ms, 2 * ms, 1.0) for name, ms in (("dense", 4.0), ("small", 1.0)))
    dense, small = Measured("dense", Cost(100, 400, 400), 0.5, 500), Measured("small", Cost(25, 40, 100), 0.75, 125)
    sizes, medians, slowest = form_tables([dense, small], bench=BenchReport(1, timings, {}), title="Forms")
    assert sizes.rows[1] == ("small", "0.7500", "25", "25.0", "40", "10.0", "125 B", "25.0")
    assert medians.rows == (("dense", "4.000", ""), ("small", "1.000", "25.0"))
    assert slowest.rows == (("dense", "8.000"), ("small", "2.000"))
