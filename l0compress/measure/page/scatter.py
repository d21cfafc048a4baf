"""Forms of a model as marks, score over what a form costs, laid out for a small drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from l0compress.measure.page.axes import axis_over
from l0compress.measure.page.curves import CHARACTER, Label
from l0compress.measure.page.placing import Box, placed

WIDTH, HEIGHT = 380.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 24.0, 14.0, 46.0
_GAP, _LINE = 9.0, 14.0


@dataclass(frozen=True)
class Mark:
    """One form.

    Attributes:
        name: what it is called.
        price, score: its place.
        reference: it is the dense model in one of its forms.
        quantized: it is drawn hollow.
        unbeaten: it is on the front.
    """

    name: str
    price: float
    score: float
    reference: bool = False
    quantized: bool = False
    unbeaten: bool = False


@dataclass(frozen=True)
class Drawn:
    """A mark in the drawing, its name, and the leader between them where the name is farther off."""

    x: float
    y: float
    mark: Mark
    label: Label
    leader: tuple[float, float] | None


@dataclass(frozen=True)
class Scatter:
    """A drawing of marks, in units of its view box.

    Attributes:
        title, x_name, y_name: what is drawn.
        marks: in the order given.
        front: the points of the polyline through what is unbeaten, as steps.
        rows, columns: ticks of the axes.
        width, height: of the view box.
        plot: left, top, right and bottom of the area inside the axes.
    """

    title: str
    x_name: str
    y_name: str
    marks: tuple[Drawn, ...]
    front: str
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    width: float = WIDTH
    height: float = HEIGHT
    plot: tuple[float, float, float, float] = (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM)


def scatter(title: str, marks: Sequence[Mark], *, x_name: str, y_name: str, higher_is_better: bool = True) -> Scatter:
    """Lay out marks on linear axes: prices from zero on, scores with the better ones on top.

    Example:
        >>> marks = [Mark("dense", 10, 0.9, reference=True), Mark("small", 2, 0.9, unbeaten=True)]
        >>> drawing = scatter("size", marks, x_name="MB", y_name="accuracy")
        >>> [column.text for column in drawing.columns]
        ['0', '2', '4', '6', '8', '10']
    """
    scores = [mark.score for mark in marks]
    ends = (HEIGHT - _BOTTOM, _TOP) if higher_is_better else (_TOP, HEIGHT - _BOTTOM)
    y_axis = axis_over(min(scores), max(scores), ends=ends)
    x_axis = axis_over(0, max(mark.price for mark in marks), ends=(_LEFT, WIDTH - _RIGHT))
    places = [(x_axis.at(mark.price), y_axis.at(mark.score)) for mark in marks]
    inside = Box(_LEFT + 2, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM)
    front = _steps(sorted(place for place, mark in zip(places, marks, strict=True) if mark.unbeaten))
    sizes = [(len(mark.name) * CHARACTER + 2, _LINE) for mark in marks]
    boxes = placed(places, sizes, inside=inside, gap=_GAP, avoid=_along(front))
    return Scatter(
        title,
        x_name,
        y_name,
        tuple(_drawn(*each) for each in zip(marks, places, boxes, strict=True)),
        " ".join(f"{x:.1f},{y:.1f}" for x, y in front),
        tuple(Label(_LEFT - 6, y + 4, text, "end") for y, text in y_axis.marks),
        tuple(Label(x, HEIGHT - _BOTTOM + 18, text) for x, text in x_axis.marks),
    )


def _drawn(mark: Mark, place: tuple[float, float], box: Box) -> Drawn:
    x, y = place
    label = _label(mark.name, x, box)
    nearest = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    far = (nearest[0] - x) ** 2 + (nearest[1] - y) ** 2 > (2 * _GAP) ** 2
    return Drawn(x, y, mark, label, nearest if far else None)


def _label(name: str, x: float, box: Box) -> Label:
    """The text in its box, held at the side that faces the mark, since fonts differ in width."""
    anchor = "start" if box.left >= x else "end" if box.right <= x else "middle"
    at = {"start": box.left, "end": box.right, "middle": (box.left + box.right) / 2}[anchor]
    return Label(at, box.bottom - 3, name, anchor)


def _steps(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Steps: up to the next price a form is the best that there is."""
    points: list[tuple[float, float]] = []
    for x, y in front:
        if points:
            points.append((x, points[-1][1]))
        points.append((x, y))
    return points


def _along(line: Sequence[tuple[float, float]]) -> list[Box]:
    """Boxes as thin as a line, one for each of its straight pieces."""
    return [
        Box(min(x, other_x) - 1, min(y, other_y) - 1, max(x, other_x) + 1, max(y, other_y) + 1)
        for (x, y), (other_x, other_y) in pairwise(line)
    ]
