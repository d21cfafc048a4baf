"""Names beside marks in a drawing, so that they cover neither each other nor the marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle in a drawing whose y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the area that both cover.

        >>> Box(0, 0, 2, 2).overlap(Box(1, 1, 4, 4)), Box(0, 0, 1, 1).overlap(Box(2, 2, 3, 3))
        (1, 0)
        """
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0


def placed(
    marks: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    inside: Box,
    gap: float,
    avoid: Sequence[Box] = (),
) -> tuple[Box, ...]:
    """Return a box for the name of each mark: near it, inside the drawing, over as little else as can be.

    Each name takes the first of its places that is free: beside, above or below its mark, then the same places farther
    off. Names of marks in a crowd are placed first.

    Args:
        marks: centres of the marks.
        sizes: width and height of each name.
        inside: the area that names stay in.
        gap: distance between a mark's centre and its name.
        avoid: what else is drawn and should not be covered, such as a line.

    Example:
        >>> first, second = placed([(50, 50), (52, 50)], [(30, 10)] * 2, inside=Box(0, 0, 100, 100), gap=6)
        >>> first.overlap(second)
        0
    """
    taken = [*avoid, *(Box(x - gap * 0.8, y - gap * 0.8, x + gap * 0.8, y + gap * 0.8) for x, y in marks)]
    found: dict[int, Box] = {}
    for index in sorted(range(len(marks)), key=lambda one: -_crowd(marks, one, sizes[one][0])):
        candidates = [_shifted(box, inside) for box in _around(marks[index], sizes[index], gap)]
        others = [*taken, *found.values()]
        found[index] = min(candidates, key=lambda box: sum(box.overlap(other) for other in others))
    return tuple(found[index] for index in range(len(marks)))


def _crowd(marks: Sequence[tuple[float, float]], index: int, reach: float) -> int:
    x, y = marks[index]
    return sum(abs(x - other_x) < reach and abs(y - other_y) < reach for other_x, other_y in marks)


def _around(mark: tuple[float, float], size: tuple[float, float], gap: float) -> list[Box]:
    """The places of a name in the order of their merit."""
    x, y = mark
    width, height = size
    boxes = []
    for ring in range(1, 6):
        far, up = gap * (0.4 + 0.6 * ring), height * (ring - 1)
        lefts = (x + far, x - far - width, x - width / 2)
        for rise in (0, up, -up) if ring > 1 else (0,):
            boxes += [_box(left, y - height / 2 - rise, size) for left in lefts[:2]]
        boxes += [_box(lefts[2], y - far - height - up, size), _box(lefts[2], y + far + up, size)]
        boxes += [_box(left, top, size) for left in lefts[:2] for top in (y - far - height, y + far)]
    return boxes


def _box(left: float, top: float, size: tuple[float, float]) -> Box:
    return Box(left, top, left + size[0], top + size[1])


def _shifted(box: Box, inside: Box) -> Box:
    """The box moved as little as it takes to lie inside."""
    across = max(inside.left - box.left, 0) + min(inside.right - box.right, 0)
    down = max(inside.top - box.top, 0) + min(inside.bottom - box.bottom, 0)
    return Box(box.left + across, box.top + down, box.right + across, box.bottom + down)
