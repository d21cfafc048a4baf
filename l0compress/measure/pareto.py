"""Score against time and size: which forms of a model no other form beats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from l0compress.measure.report import as_count, as_share, in_ms
from l0compress.measure.table import Table

FILE = "file"


@dataclass(frozen=True)
class Point:
    """One form of a model.

    Attributes:
        name: what it is called.
        score: on held-out data.
        file_bytes: size of its file.
        milliseconds: median latency of a call, by batch size.
        counts: what else it costs, by name, such as its MACs.
    """

    name: str
    score: float
    file_bytes: int
    milliseconds: Mapping[int, float] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)

    def price(self, axis: str) -> float:
        """What the form costs on an axis of :attr:`Tradeoff.axes`."""
        if axis in self.counts:
            return self.counts[axis]
        return self.file_bytes if axis == FILE else self.milliseconds[int(axis.removeprefix("batch "))]


@dataclass(frozen=True)
class Tradeoff:
    """Forms of one model, beside what they are compared with.

    Attributes:
        points: the forms, the dense one first.
        score_name: what the scores are.
        higher_is_better: whether more of it is better.
        threads: threads that latencies were taken with.
        references: names of those that are no small models.
    """

    points: tuple[Point, ...]
    score_name: str
    higher_is_better: bool = True
    threads: int = 1
    references: tuple[str, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """What a form costs: ``batch N``, the latency at that batch size, for each; counts; and ``file``."""
        first = self.points[0]
        return (*(f"batch {size}" for size in first.milliseconds), *first.counts, FILE)

    def front(self, axis: str) -> tuple[Point, ...]:
        """The forms that no other beats on an axis, cheapest first: a dearer one of them has a better score.

        Of forms that are equal in both, all are on the front.

        >>> points = (Point("dense", 0.9, 40), Point("small", 0.9, 10), Point("half", 0.8, 20), Point("tiny", 0.7, 5))
        >>> [point.name for point in Tradeoff(points, "accuracy").front("file")]
        ['tiny', 'small']
        """
        front = [one for one in self.points if not any(self._beats(other, one, axis) for other in self.points)]
        return tuple(sorted(front, key=lambda point: point.price(axis)))

    def unbeaten(self, point: Point) -> tuple[str, ...]:
        """The axes on whose front a form is."""
        return tuple(axis for axis in self.axes if point in self.front(axis))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``: for every axis the names on its front, cheapest first."""
        return {axis: [point.name for point in self.front(axis)] for axis in self.axes}

    def _beats(self, one: Point, other: Point, axis: str) -> bool:
        """Whether a form is no worse than another in score and price, and better in one of them."""
        sign = 1 if self.higher_is_better else -1
        gain, saving = sign * (one.score - other.score), other.price(axis) - one.price(axis)
        return gain >= 0 and saving >= 0 and (gain > 0 or saving > 0)


def unbeaten_notes(tradeoff: Tradeoff) -> tuple[str, ...]:
    """Say for every axis which forms no other beats, cheapest first.

    >>> points = (Point("dense", 0.9, 40, {1: 2.0}), Point("small", 0.8, 10, {1: 0.5}), Point("bad", 0.7, 20, {1: 1.0}))
    >>> print(*unbeaten_notes(Tradeoff(points, "accuracy")), sep="\\n")
    Unbeaten (no other form is better without being dearer, or cheaper without being worse):
      at batch 1: small, dense
      in file size: small, dense
    """
    said = "Unbeaten (no other form is better without being dearer, or cheaper without being worse):"
    fronts = {axis: ", ".join(point.name for point in tradeoff.front(axis)) for axis in tradeoff.axes}
    lines = (f"  {'in file size' if axis == FILE else f'at {axis}'}: {names}" for axis, names in fronts.items())
    return said, *lines


def pareto_table(tradeoff: Tradeoff, *, title: str = "") -> Table:
    """Every form with its score, its latencies, its file, and where no other form beats it.

    >>> points = (Point("dense", 0.9, 40, {1: 2.0}), Point("small", 0.8, 10, {1: 0.5}), Point("bad", 0.7, 20, {1: 1.0}))
    >>> print(pareto_table(Tradeoff(points, "test accuracy", references=("dense",))).to_markdown())
    |  | test accuracy | batch 1 (ms) | file bytes | unbeaten at |
    |---|---:|---:|---:|---:|
    | dense (reference) | 0.9000 | 2.000 | 40 | batch 1, file |
    | small | 0.8000 | 0.500 (25.0 %) | 10 (25.0 %) | batch 1, file |
    | bad | 0.7000 | 1.000 (50.0 %) | 20 (50.0 %) | — |
    <BLANKLINE>
    Medians of whole calls with 1 thread, forms taking turns. Unbeaten: no other form is better without being
    dearer, or cheaper without being worse.
    """
    dense = tradeoff.points[0]

    def priced(point: Point, axis: str) -> str:
        value = point.price(axis)
        text = as_count(point.file_bytes) if axis == FILE else in_ms(value)
        return text if point is dense else f"{text} ({as_share(value, dense.price(axis))})"

    def row(point: Point) -> tuple[str, ...]:
        name = f"{point.name} (reference)" if point.name in tradeoff.references else point.name
        prices = (priced(point, axis) for axis in tradeoff.axes)
        return name, f"{point.score:.4f}", *prices, ", ".join(tradeoff.unbeaten(point)) or "—"

    headings = ("file bytes" if axis == FILE else f"{axis} (ms)" for axis in tradeoff.axes)
    threads = f"{tradeoff.threads} thread{'s' if tradeoff.threads != 1 else ''}"
    note = (
        f"Medians of whole calls with {threads}, forms taking turns. Unbeaten: no other form is better without being "
        "dearer, or cheaper without being worse."
    )
    columns = ("", tradeoff.score_name, *headings, "unbeaten at")
    return Table(title, columns, tuple(map(row, tradeoff.points)), (note,))
