"""Curves over epochs, laid out for a small drawing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from l0compress.measure.page.axes import axis_over

WIDTH, HEIGHT = 380.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 12.0, 34.0, 34.0
# What a character takes of the drawing's width, at the size in which its style sets text.
CHARACTER = 7.7


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: what it shows.
        points: (epoch, value); an epoch without a value is left out.
        dashed: a limit or a reference rather than what was measured.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


@dataclass(frozen=True)
class Span:
    """A part of the epochs with a name: a phase, or a member of a family."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn: the points of a polyline, and the number of its colour."""

    name: str
    points: str
    colour: int
    dashed: bool


@dataclass(frozen=True)
class Label:
    """A text at a place; ``anchor`` is ``start``, ``middle`` or ``end``."""

    x: float
    y: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Curves:
    """A drawing of curves, in units of its view box.

    Attributes:
        title: what is drawn.
        lines: the curves.
        rows, columns: ticks of the axes.
        borders: where one span ends and the next begins.
        spans: names of the spans, those that have room.
        width, height: of the view box.
        plot: left, top, right and bottom of the area inside the axes.
    """

    title: str
    lines: tuple[Line, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    borders: tuple[float, ...]
    spans: tuple[Label, ...]
    width: float = WIDTH
    height: float = HEIGHT
    plot: tuple[float, float, float, float] = field(default=(_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM))


def curves(title: str, series: Sequence[Series], spans: Sequence[Span] = ()) -> Curves | None:
    """Lay out curves on common axes; None where there is nothing to draw.

    Example:
        >>> drawing = curves("score", [Series("small", ((0, 0.9), (1, 0.95), (2, 1.0)))])
        >>> [row.text for row in drawing.rows][0], drawing.lines[0].points
        ('0.90', '50.0,206.0 209.0,120.0 368.0,34.0')
    """
    points = [point for one in series for point in one.points]
    if not points:
        return None
    across, values = [x for x, _ in points], [y for _, y in points]
    last = max(max(across), 1.0)
    y_axis = axis_over(min(values), max(values), ends=(HEIGHT - _BOTTOM, _TOP))
    x_axis = axis_over(min(across), last, ends=(_LEFT, WIDTH - _RIGHT), whole=True, most=6)

    def x_at(x: float) -> float:
        # The curve fills the width: the axis may end on a round number beyond it, which is then not written.
        share = (x - min(across)) / (last - min(across))
        return _LEFT + share * (WIDTH - _RIGHT - _LEFT)

    lines, colour = [], 0
    for one in series:
        drawn = " ".join(f"{x_at(x):.1f},{y_axis.at(y):.1f}" for x, y in one.points)
        lines.append(Line(one.name, drawn, colour, one.dashed))
        colour += not one.dashed
    return Curves(
        title,
        tuple(lines),
        tuple(Label(_LEFT - 6, y + 4, text, "end") for y, text in y_axis.marks),
        tuple(
            Label(x_at(tick), HEIGHT - _BOTTOM + 18, f"{tick:,.0f}")
            for tick in x_axis.ticks
            if min(across) <= tick <= last
        ),
        tuple(x_at(span.start) for span in spans[1:]),
        _named(spans, x_at),
    )


def _named(spans: Sequence[Span], at: Callable[[float], float]) -> tuple[Label, ...]:
    """The names of spans above the plot, in two lines if one is too short; a name without room is left out."""
    labels = [Label((at(one.start) + at(one.end)) / 2, _TOP - 8, one.name) for one in spans]
    if any(_end(one) > _start(other) for one, other in pairwise(labels)):
        labels = [Label(one.x, one.y - 13 * (index % 2), one.text) for index, one in enumerate(labels)]
    kept: list[Label] = []
    for one in labels:
        x = min(max(one.x, _width(one) / 2 + 1), WIDTH - _width(one) / 2 - 1)
        moved = Label(x, one.y, one.text)
        if all(other.y != moved.y or _end(other) + 4 <= _start(moved) for other in kept):
            kept.append(moved)
    return tuple(kept)


def _width(label: Label) -> float:
    return len(label.text) * CHARACTER


def _start(label: Label) -> float:
    return label.x - _width(label) / 2


def _end(label: Label) -> float:
    return label.x + _width(label) / 2
