"""A smaller model that is not faster: the table says why, from timings and arithmetic alone."""

from __future__ import annotations

import pytest

from l0compress.graph.groups.cost import Cost
from l0compress.measure.bench import BenchReport, Timing
from l0compress.measure.report import Measured, comparison_table

DENSE, SMALL = Measured("dense", Cost(9, 2_000_000, 36)), Measured("small", Cost(3, 1_000_000, 12))


def notes(dense_ms: dict[int, float], small_ms: dict[int, float], small: Measured = SMALL) -> tuple[str, ...]:
    timings = tuple(
        Timing(name, size, 15, ms, ms, 1000 * size / ms)
        for name, medians in (("dense", dense_ms), ("small", small_ms))
        for size, ms in medians.items()
    )
    return comparison_table(DENSE, small, bench=BenchReport(2, timings, {})).notes[1:]


def test_a_faster_model_needs_no_word():
    assert notes({1: 0.2, 8: 1.6}, {1: 0.1, 8: 0.8}) == ()


def test_what_noise_explains_needs_no_word():
    assert notes({1: 0.200}, {1: 0.205}) == ()


def test_overhead_is_what_arithmetic_at_the_fastest_rate_leaves():
    # At batch 64 a millisecond does 20 million MACs, so that the small model's million is 0.05 of its 0.25 ms.
    assert notes({1: 0.20, 64: 6.4}, {1: 0.25, 64: 3.2}) == (
        "small is not faster than dense at batch 1: its arithmetic takes about 20 % of its 0.250 ms; the rest, "
        "starting operators and moving data, depends little on widths.",
    )


def test_kernels_that_do_worse_at_its_widths():
    assert notes({8: 0.8}, {8: 0.8 / 0.9}) == (
        "small is not faster than dense at batch 8: its arithmetic takes about 45 % of its 0.889 ms; the rest, "
        "starting operators and moving data, depends little on widths.",
    )
    assert notes({8: 0.8}, {8: 1.0}, Measured("small", Cost(3, 1_500_000, 12))) == (
        "small is not faster than dense at batch 8: it does 12.0 GMACs a second there and dense 20.0, so its "
        "kernels do worse at its widths; multiples of 16 suit most of them.",
    )


@pytest.mark.parametrize(
    "small",
    [Measured("small", Cost(3, 1_000_000, 12), quantized=True), Measured("small", Cost(9, 2_000_000, 36))],
    ids=["quantized", "as large"],
)
def test_what_is_no_smaller_or_stored_otherwise_is_not_explained(small):
    assert notes({1: 0.2}, {1: 0.4}, small) == ()
