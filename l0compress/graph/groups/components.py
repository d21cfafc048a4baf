"""Components: labels that stand or fall together, and the closure of a removal over ties and grids.

requires: a :class:`~l0compress.graph.labels.Labelled`.
ensures:  a :class:`Components` in which label ``i`` belongs to component ``of_label[i]``, and :meth:`Components.close`
          turns any set of dead components into the smallest larger set that a graph can lose.

Connected components are SciPy's (:func:`scipy.sparse.csgraph.connected_components`), once; ties that turn out to join
two components outright are added and the search repeated until nothing changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from l0compress.graph.labels.islands import islands
from l0compress.graph.labels.space import FROZEN
from l0compress.graph.labels.values import Value, core, flattened, varying
from l0compress.graph.labels.walk import Labelled

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Components:
    """Components and the constraints between them.

    Attributes:
        of_label: component of each label.
        count: number of components.
        reasons: why a component cannot be removed; an index into ``labelled.space.frozen``, -1 where it is free.
        ties: ``(part, wholes)``: the part is alive exactly if any whole is.
        grids: matrices of components that must stay rectangular.
        ties_of, grids_of: the constraints that a component takes part in.
    """

    of_label: Array
    count: int
    reasons: Array
    ties: tuple[tuple[int, tuple[int, ...]], ...]
    grids: tuple[Array, ...]
    ties_of: dict[int, list[int]]
    grids_of: dict[int, list[int]]

    def of(self, labels: Tensor) -> Array:
        """Components of a tensor of labels, in its shape."""
        return self.of_label[labels.numpy()]

    def constrained(self, component: int) -> bool:
        return component in self.ties_of or component in self.grids_of

    def close(self, seed: Iterable[int]) -> tuple[set[int], int | None]:
        """Everything that dies with ``seed``.

        Returns:
            The dead components, and the frozen component that the removal ran into (None if it did not).
        """
        gone: set[int] = set()
        mask: Array | None = None  # the same as an array, made when a grid asks for it
        pending, touched = list(seed), set()
        while pending or touched:
            while pending:
                component = pending.pop()
                if component in gone:
                    continue
                if self.reasons[component] >= 0:
                    return gone, component
                gone.add(component)
                if mask is not None:
                    mask[component] = True
                if component in self.ties_of:
                    pending.extend(self._through_ties(component, gone))
                touched.update(self.grids_of.get(component, ()))
            if touched:
                if mask is None:
                    mask = np.zeros(self.count, dtype=bool)
                    mask[list(gone)] = True
                pending.extend(_ragged(self.grids[touched.pop()], mask))
        return gone, None

    def _through_ties(self, component: int, gone: set[int]) -> list[int]:
        found: list[int] = []
        for index in self.ties_of[component]:
            part, wholes = self.ties[index]
            if part == component:
                found.extend(wholes)
            elif part not in gone and all(whole in gone for whole in wholes):
                found.append(part)
        return found


def _ragged(grid: Array, gone: Array) -> list[int]:
    """What must follow so that whole rows and columns are left: the columns of stray dead cells."""
    dead = gone[grid]
    rows, columns = dead.all(1), dead.all(0)
    stray = dead[~rows].any(0) & ~columns
    return np.unique(grid[:, stray]).tolist() if stray.any() else []


def solve(labelled: Labelled) -> Components:
    """Join united labels into components and express ties, grids and freezes over them."""
    space = labelled.space
    pairs = [pair.numpy() for pair in space.unions if pair.numel()]
    joined = np.concatenate(pairs, 1) if pairs else np.zeros((2, 0), dtype=np.int64)
    ties = [(part.numpy(), wholes.numpy()) for part, wholes in space.ties]
    while True:
        links = coo_array((np.ones(joined.shape[1], dtype=np.int8), (joined[0], joined[1])), shape=(space.count,) * 2)
        count, of_label = connected_components(links, directed=False)
        more = [
            np.stack([part[one], wholes[one, 0]])
            for part, wholes in ties
            if (one := _outright(of_label, part, wholes)).any()
        ]
        if not more:
            break
        joined = np.concatenate([joined, *more], 1)
    solved_ties = tuple(sorted(_distinct_ties(of_label, ties)))
    grids = _distinct_grids(of_label, [*space.grids, *_layout_grids(labelled)])
    return Components(
        of_label=of_label,
        count=int(count),
        reasons=_reasons(labelled, of_label, int(count)),
        ties=solved_ties,
        grids=grids,
        ties_of=_index((part, *wholes) for part, wholes in solved_ties),
        grids_of=_index(np.unique(grid).tolist() for grid in grids),
    )


def refrozen(labelled: Labelled, components: Components) -> Components:
    """The same components, after facts were added that freeze some of them."""
    return replace(components, reasons=_reasons(labelled, components.of_label, components.count))


def _outright(of_label: Array, part: Array, wholes: Array) -> Array:
    """Ties whose wholes are one component that the part does not belong to yet."""
    joined: Array = of_label[wholes]
    return np.logical_and((joined == joined[:, :1]).all(1), joined[:, 0] != of_label[part])


def _distinct_ties(of_label: Array, ties: list[tuple[Array, Array]]) -> set[tuple[int, tuple[int, ...]]]:
    found: set[tuple[int, tuple[int, ...]]] = set()
    for part, wholes in ties:
        for single, row in zip(of_label[part].tolist(), of_label[wholes], strict=True):
            members = tuple(np.unique(row).tolist())
            if members != (single,):
                found.add((single, members))
    return found


def _distinct_grids(of_label: Array, tables: list[Tensor]) -> tuple[Array, ...]:
    found: dict[tuple[tuple[int, ...], bytes], Array] = {}
    for table in tables:
        grid = of_label[table.reshape(table.shape[0], -1).numpy()]
        if min(grid.shape) > 1:
            found.setdefault((grid.shape, grid.tobytes()), grid)
    return tuple(found.values())


def _layout_grids(labelled: Labelled) -> list[Tensor]:
    """Planes over several dimensions of a tensor that an operator really sees in that layout."""
    inside = islands(labelled)
    tables: list[Tensor] = []
    for name, entry in labelled.values.items():
        if name in inside:
            continue
        for value in entry if isinstance(entry, tuple) else (entry,):
            for plane in value.planes if isinstance(value, Value) else ():
                tables.extend(_faces(plane))
    return tables


def _faces(plane: Tensor) -> list[Tensor]:
    """Each varying dimension against the rest; for two dimensions one face says it all."""
    small, dims = core(plane), sorted(varying(plane))
    chosen = dims if len(dims) > 2 else dims[:1] if len(dims) == 2 else []
    return [small.movedim(dim, 0).reshape(small.shape[dim], -1) for dim in chosen]


def _reasons(labelled: Labelled, of_label: Array, count: int) -> Array:
    reasons = np.full(count, -1, dtype=np.int64)
    for index in range(len(labelled.space.frozen) - 1, -1, -1):
        reasons[of_label[flattened(labelled.space.frozen[index].labels).numpy()]] = index
    if reasons[of_label[FROZEN]] < 0:
        reasons[of_label[FROZEN]] = len(labelled.space.frozen)
    return reasons


def _index(members: Iterable[Iterable[int]]) -> dict[int, list[int]]:
    table: defaultdict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(members):
        for component in set(group):
            table[component].append(index)
    return dict(table)
