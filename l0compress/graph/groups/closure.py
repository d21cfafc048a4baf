"""What a whole plan leaves of a graph, worked out for all components at once.

requires: components, the lines that they lie on, and the removals that moves stand for.
ensures:  a :class:`Closure`, which agrees with :meth:`Components.close` and :meth:`Lines.emptied`. Those follow one
          seed through sets, which is faster for a few components; this takes a few passes over arrays for any number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from l0compress.graph.groups.components import Components
from l0compress.graph.groups.moves import Lines, Removal

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Ragged:
    """Lists of different lengths as one array: list ``i`` is ``members[starts[i] : starts[i + 1]]``; none is empty.

    Examples:
        >>> rows = Ragged.of([[4, 2], [7]])
        >>> rows.members.tolist(), rows.starts.tolist(), rows.owner.tolist()
        ([4, 2, 7], [0, 2], [0, 0, 1])
        >>> rows.all(np.array([True, True, False])), rows.any(np.array([False, True, False]))
        (array([ True, False]), array([ True, False]))
    """

    members: Array
    starts: Array
    owner: Array

    @classmethod
    def of(cls, rows: Sequence[Iterable[int]]) -> Ragged:
        lists = [list(row) for row in rows]
        sizes = np.array([len(row) for row in lists], dtype=np.int64)
        members = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=int(sizes.sum()))
        return cls(members, np.cumsum(sizes) - sizes, np.repeat(np.arange(len(lists)), sizes))

    def all(self, flags: Array) -> Array:
        """Whether every one of the ``flags``, one per member, is set, list by list."""
        return np.logical_and.reduceat(flags, self.starts) if len(self.starts) else np.zeros(0, dtype=bool)

    def any(self, flags: Array) -> Array:
        """Whether any of the ``flags``, one per member, is set, list by list."""
        return np.logical_or.reduceat(flags, self.starts) if len(self.starts) else np.zeros(0, dtype=bool)


@dataclass(frozen=True, eq=False)
class Closure:
    """The constraints between components as arrays.

    Attributes:
        removals: the components that each move removes.
        frozen: bool (components,): what has to stay.
        parts, wholes: a part is alive exactly if any of its wholes is.
        grids: matrices that must stay rectangular, (grids, rows, columns) for each shape there is.
        lines: the components on each line.
    """

    removals: Ragged
    frozen: Array
    parts: Array
    wholes: Ragged
    grids: tuple[Array, ...]
    lines: Ragged

    @classmethod
    def of(cls, components: Components, lines: Lines, removals: Sequence[Removal]) -> Closure:
        by_shape: dict[tuple[int, ...], list[Array]] = {}
        for grid in components.grids:
            by_shape.setdefault(grid.shape, []).append(grid)
        on_line: list[list[int]] = [[] for _ in lines.sizes]
        for component, found in lines.of_component.items():
            for line in found:
                on_line[line].append(component)
        return cls(
            removals=Ragged.of([removal.components for removal in removals]),
            frozen=components.reasons >= 0,
            parts=np.array([part for part, _ in components.ties], dtype=np.int64),
            wholes=Ragged.of([wholes for _, wholes in components.ties]),
            grids=tuple(np.stack(grids) for grids in by_shape.values()),
            lines=Ragged.of(on_line),
        )

    def dead(self, keep: Array) -> Array | None:
        """bool (components,): what dies with the moves that ``keep``, bool (moves,), has False.

        None where something would die that has to stay.
        """
        gone = np.zeros(len(self.frozen), dtype=bool)
        gone[self.removals.members[~keep[self.removals.owner]]] = True
        count = -1
        while count != (count := int(gone.sum())):
            self._tie_(gone)
            for grids in self.grids:
                gone[grids.swapaxes(1, 2)[_stray_columns(gone[grids])]] = True
        return None if bool((gone & self.frozen).any()) else gone

    def kept(self, keep: Array, dead: Array) -> Array:
        """bool (moves,): the moves of ``keep`` of which any component is left."""
        return keep & self.removals.any(~dead[self.removals.members])

    def emptied(self, dead: Array) -> frozenset[int]:
        """The lines that are left without any component, and had one."""
        count = len(self.lines.starts)
        gone = np.bincount(self.lines.owner[dead[self.lines.members]], minlength=count)
        return frozenset(((gone > 0) & (gone == np.bincount(self.lines.owner, minlength=count))).nonzero()[0].tolist())

    def _tie_(self, gone: Array) -> None:
        """Follow the ties until nothing more dies."""
        count = -1
        while len(self.parts) and count != (count := int(gone.sum())):
            gone[self.wholes.members[gone[self.parts][self.wholes.owner]]] = True
            gone[self.parts[self.wholes.all(gone[self.wholes.members])]] = True


def _stray_columns(dead: Array) -> Array:
    """bool (grids, columns): the columns with a dead cell that lies in no dead row, of bool (grids, rows, columns).

    >>> _stray_columns(np.array([[[True, True, True], [True, False, False], [True, False, False]]]))
    array([[False, False, False]])
    >>> _stray_columns(np.array([[[True, True, True], [True, False, False], [False, False, False]]]))
    array([[ True, False, False]])
    """
    rows, columns = np.all(dead, axis=2, keepdims=True), np.all(dead, axis=1)
    return np.any(dead & ~rows, axis=1) & ~columns
