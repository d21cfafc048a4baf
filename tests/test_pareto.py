"""Which forms of a model no other beats, against the definition spelled out."""

from __future__ import annotations

import re
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from l0compress.measure.bench import BenchReport, Timing
from l0compress.measure.pareto import Point, Tradeoff, pareto_table
from l0compress.measure.plot import plot_latency, plot_tradeoff


def random_points(seed: int) -> tuple[Point, ...]:
    """Few values, so that there are ties."""
    values = np.random.default_rng(seed).integers(1, 5, size=(9, 4))
    return tuple(
        Point(f"form {number}", float(score), int(size), {1: float(one), 8: float(eight)})
        for number, (score, size, one, eight) in enumerate(values)
    )


@pytest.mark.parametrize("seed, higher", list(product(range(6), (True, False))))
def test_the_front_is_what_no_form_beats(seed: int, higher: bool) -> None:
    tradeoff = Tradeoff(random_points(seed), "score", higher)
    prices = {
        "batch 1": lambda p: p.milliseconds[1],
        "batch 8": lambda p: p.milliseconds[8],
        "file": lambda p: p.file_bytes,
    }
    assert tradeoff.axes == tuple(prices)
    for axis, price in prices.items():
        front = tradeoff.front(axis)
        for point in tradeoff.points:
            good = [p for p in tradeoff.points if (p.score >= point.score if higher else p.score <= point.score)]
            cheapest = min(map(price, good))
            best = max if higher else min
            beaten = cheapest < price(point) or best(p.score for p in good if price(p) == price(point)) != point.score
            assert (point in front) is not beaten
        assert [price(point) for point in front] == sorted(map(price, front))


def test_of_an_error_less_is_better() -> None:
    points = (Point("dense", 0.1, 40), Point("small", 0.2, 10), Point("bad", 0.3, 20))
    assert Tradeoff(points, "loss", False).to_json() == {"file": ["small", "dense"]}


def test_the_table_marks_references_and_shares_of_dense() -> None:
    points = (Point("dense", 0.5, 1000, {2: 4.0}), Point("half", 0.5, 500, {2: 12.0}))
    table = pareto_table(Tradeoff(points, "loss", False, 2, ("dense",)), title="Forms")
    assert table.rows == (
        ("dense (reference)", "0.5000", "4.000", "1,000", "batch 2"),
        ("half", "0.5000", "12.0 (300.0 %)", "500 (50.0 %)", "file"),
    )
    assert table.notes[0].startswith("Medians of whole calls with 2 threads, forms taking turns.")


def test_the_picture_names_every_form_and_axis(tmp_path: Path) -> None:
    points = (
        Point("dense", 0.9, 4000, {1: 2.0}),
        Point("dense int8", 0.9, 1000, {1: 1.0}),
        Point("half", 0.8, 900, {1: 0.7}),
    )
    tradeoff = Tradeoff(points, "test accuracy", references=("dense", "dense int8"))
    drawing = plot_tradeoff(tradeoff, tmp_path / "forms.svg", title="build/family").read_text()
    wanted = ("dense", "dense int8", "half", "batch 1", "file size", "test accuracy", "build/family")
    assert all(f"<!-- {text} -->" in drawing for text in wanted)


def test_axes_of_pictures_are_linear_from_zero_and_names_stand_beside_their_marks(tmp_path: Path) -> None:
    points = tuple(Point(f"form {number}", 0.9, 1000 + 9 * number, {1: 1 + number / 99}) for number in range(6))
    drawing = plot_tradeoff(Tradeoff(points, "accuracy"), tmp_path / "forms.svg").read_text()
    placed = {name: drawing.partition(f"<!-- {name} -->")[2][:400] for name in (point.name for point in points)}
    found = {name: re.search(r"translate\(([\d.]+) ([\d.]+)\) scale", text) for name, text in placed.items()}
    corners = {name: (float(one[1]), float(one[2])) for name, one in found.items() if one is not None}
    assert len(corners) == 6
    for (x, y), (other_x, other_y) in combinations(corners.values(), 2):
        assert abs(x - other_x) > 20 or abs(y - other_y) > 7
    assert all(f"<!-- {tick} -->" in drawing for tick in ("0", "0.4", "0.8")) and "10^" not in drawing


def test_latencies_are_written_behind_their_bars(tmp_path: Path) -> None:
    timings = tuple(Timing(name, 8, 15, ms, 3 * ms, 1.0) for name, ms in (("dense", 4.0), ("small int8", 0.25)))
    drawing = plot_latency(BenchReport(1, timings, {"dense": 9, "small int8": 3}), tmp_path / "a.svg").read_text()
    for text in ("dense", "small int8", "batch 8", "4.000  (95 %: 12.0)", "0.250  (95 %: 0.750)"):
        assert f"<!-- {text} -->" in drawing
