"""Results as tables."""

from __future__ import annotations

import json

from l0compress.graph import Cost
from l0compress.measure.bench import BenchReport, Timing
from l0compress.measure.report import Measured, bench_table, comparison_table, equality_table
from l0compress.measure.table import Table
from l0compress.verification import Equality, OutputEquality

DENSE = Measured("dense", Cost(61706, 281640, 246824), metric=0.9861, file_bytes=250000)
SMALL = Measured("small", Cost(20000, 70410, 80000), metric=0.9833, file_bytes=82000)
TIMES = BenchReport(
    threads=2,
    timings=(Timing("dense", 1, 100, 1.5, 2.0, 666.7), Timing("small", 1, 95, 0.75, 12.5, 1333.3)),
    file_bytes={"dense": 250000, "small": 82000},
)


def test_dense_against_small():
    table = comparison_table(DENSE, SMALL, bench=TIMES, title="Digits")
    assert table.columns == ("", "dense", "small", "share")
    assert table.rows == (
        ("accuracy", "0.9861", "0.9833", ""),
        ("parameters", "61,706", "20,000", "32.4 %"),
        ("MACs per sample", "281,640", "70,410", "25.0 %"),
        ("weight bytes", "246,824", "80,000", "32.4 %"),
        ("file bytes", "250,000", "82,000", "32.8 %"),
        ("latency median, batch 1 (ms)", "1.500", "0.750", "50.0 %"),
        ("latency p95, batch 1 (ms)", "2.000", "12.5", "625.0 %"),
    )
    assert table.notes == ("Latency of whole calls with 2 threads, 95 or more timed calls each, models taking turns.",)


def test_what_was_not_measured_has_no_row():
    table = comparison_table(Measured("dense", DENSE.cost), Measured("small", SMALL.cost, file_bytes=5))
    assert [row[0] for row in table.rows] == ["parameters", "MACs per sample", "weight bytes", "file bytes"]
    assert table.rows[-1] == ("file bytes", "—", "5", "—")
    assert table.notes == ()


def test_timings():
    table = bench_table(TIMES)
    assert table.columns == ("model", "file bytes", "batch", "median ms", "p95 ms", "samples/s")
    assert table.rows == (
        ("dense", "250,000", "1", "1.500", "2.000", "667"),
        ("small", "82,000", "1", "0.750", "12.5", "1,333"),
    )


def test_equality_names_outputs_that_say_little():
    outputs = (OutputEquality("logits", 1e-7, 2e-7, 1e-5, False), OutputEquality("aux", 0.0, 0.0, 1e-5, True))
    table = equality_table(Equality(outputs, (2, 1, 5)))
    assert table.rows[0] == ("logits", "1.0e-07", "2.0e-07", "1e-05")
    assert table.notes == (
        "Compared at batch sizes 2, 1, 5.",
        "All zero in the reference, so equality says little about: aux.",
    )


def test_markdown_escapes_bars():
    assert "| a\\|b | 1 |" in Table("", ("x", "y"), (("a|b", "1"),)).to_markdown()


def test_a_table_is_json():
    written = json.loads(json.dumps(comparison_table(DENSE, SMALL).to_json()))
    assert written["rows"][1] == {"": "parameters", "dense": "61,706", "small": "20,000", "share": "32.4 %"}
