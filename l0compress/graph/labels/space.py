"""The facts that the label pass collects: which labels stand or fall together, and why some cannot fall.

Four kinds of fact, enough for every operator:

* ``unite``: two labels are alive or dead together;
* ``tie``: a label is alive exactly if any of a set is (broadcasting, and the outer labels of a contraction);
* ``grid``: what is left of a two-dimensional arrangement must be whole rows and columns;
* ``freeze``: a label cannot be removed, for a reason that the user is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from l0compress.graph.labels.values import Shape, Value, as_matrix, core, flattened, lifted, varying
from l0compress.graph.nodes.network import Place

MEETS = "the tensor that it is combined with here stays whole"  # a reason that has another behind it
FROZEN = 0  # the label of everything that belongs to no channel


@dataclass(frozen=True, eq=False)
class FrozenFact:
    labels: Tensor
    node: fx.Node
    reason: str


@dataclass(frozen=True, eq=False)
class ReadFact:
    """A contraction that sums over channels: where to multiply, and which labels its result hangs on."""

    node: fx.Node
    arg: Place
    plane: Tensor
    survivors: Tensor | None  # same shape as the plane's core: the output label an element feeds, None = always needed


@dataclass(frozen=True, eq=False)
class MacsFact:
    """``coefficient`` times the product of the live counts of the planes, in multiply-accumulates a sample."""

    node: fx.Node
    coefficient: float
    planes: tuple[Tensor, ...]


@dataclass
class LabelSpace:
    """Collects facts while the graph is walked. The only mutable object of the label pass."""

    count: int = 1
    unions: list[Tensor] = field(default_factory=list)
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    grids: list[Tensor] = field(default_factory=list)
    frozen: list[FrozenFact] = field(default_factory=list)
    reads: list[ReadFact] = field(default_factory=list)
    macs: list[MacsFact] = field(default_factory=list)
    soft_labels: list[tuple[int, int]] = field(default_factory=list)

    def fresh(self, size: int) -> Tensor:
        labels = torch.arange(self.count, self.count + size)
        self.count += size
        return labels

    def fresh_plane(self, dims: frozenset[int], shape: Shape) -> Tensor:
        """A plane of new labels, one for each position along ``dims``."""
        view = [size if d in dims else 1 for d, size in enumerate(shape)]
        return self.fresh(int(torch.Size(view).numel())).view(view).expand(shape)

    def mark_soft_(self, plane: Tensor) -> None:
        """Labels minted for a mere expansion give way where they would collide with real channels."""
        labels = flattened(plane)
        self.soft_labels.append((int(labels.min()), int(labels.max())))

    def is_soft(self, plane: Tensor) -> bool:
        label = int(flattened(plane)[0])
        return any(low <= label <= high for low, high in self.soft_labels)

    def unite_(self, a: Tensor, b: Tensor) -> None:
        a, b = torch.broadcast_tensors(core(a), core(b))
        self.unions.append(torch.stack([a.reshape(-1), b.reshape(-1)]))

    def freeze_(self, plane: Tensor, node: fx.Node, reason: str) -> None:
        self.frozen.append(FrozenFact(flattened(plane), node, reason))

    def freeze_value_(self, value: Value, node: fx.Node, reason: str) -> None:
        for plane in value.planes:
            self.freeze_(plane, node, reason)

    def tie_any_(self, part: Tensor, whole: Tensor) -> None:
        """``part[x]`` is alive exactly if some ``whole[x, y]`` is; ``whole`` stays a rectangle."""
        rows = varying(part)
        matrix = as_matrix(whole, rows)
        if matrix.shape[1] == 1:
            self.unite_(flattened(part), matrix[:, 0])
            return
        self.ties.append((flattened(part), matrix))
        if rows:  # outer dimensions are rows, as in a tensor's own layout
            outer = min(rows) < min(varying(whole) - rows)
            self.grids.append(matrix if outer else matrix.T)

    def merge(self, values: list[Value], shape: Shape, node: fx.Node) -> Value:
        """The planes of an elementwise result: operands lose the same elements, stretched dimensions follow.

        Planes that meet with the same dimensions are united. A plane that covers several smaller ones stays a
        rectangle and the small ones are tied to it. Of two planes that share some dimensions (heads x width of one
        kind against heads x width of another) only whole shares go, and so it is where the other operand has no labels
        along the width and repeats itself over heads. What meets a dimension without labels is frozen.
        """
        result, stretched = lifted(values[0], shape)
        for value in values[1:]:
            other, other_stretched = lifted(value, shape)
            result = self._merge_pair(result, stretched, other, other_stretched, node)
            stretched = stretched & other_stretched
        return result

    def _merge_pair(self, a: Value, a_free: frozenset[int], b: Value, b_free: frozenset[int], node: fx.Node) -> Value:
        kept: list[Tensor] = []
        for mine, theirs in _meeting(a.planes, b.planes):
            if not theirs or not mine:
                free = b_free if mine else a_free
                for plane in mine or theirs:
                    if varying(plane) <= free:
                        kept.append(plane)
                    elif varying(plane) & free:
                        kept.append(self._united(plane, varying(plane) - free))
                    else:
                        self.freeze_(plane, node, MEETS)
            elif len(mine) == 1 and len(theirs) == 1 and varying(mine[0]) == varying(theirs[0]):
                self.unite_(mine[0], theirs[0])
                kept.append(mine[0])
            elif len(mine) == 1 and self._covers(mine[0], theirs, b_free):
                kept.append(mine[0])
            elif len(theirs) == 1 and self._covers(theirs[0], mine, a_free):
                kept.append(theirs[0])
            elif len(mine) == 1 and len(theirs) == 1:
                kept.append(self._collapsed(mine[0], theirs[0]))
            else:
                for plane in (*mine, *theirs):
                    self.freeze_(plane, node, "its channels are laid out differently in the two operands")
        return Value(a.shape, tuple(kept))

    def _collapsed(self, a: Tensor, b: Tensor) -> Tensor:
        """Along what only one of two planes varies over, the other stays whole: what they share goes as a whole."""
        first = self._united(a, varying(a) - varying(b))
        self.unite_(b, first)
        return first

    def _united(self, plane: Tensor, dims: frozenset[int]) -> Tensor:
        """The plane with its labels made one along ``dims``."""
        first = plane
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self.unite_(plane, first)
        return first.expand(plane.shape)

    def _covers(self, whole: Tensor, parts: list[Tensor], free: frozenset[int]) -> bool:
        dims = varying(whole)
        covered = frozenset().union(*(varying(part) for part in parts))
        if not covered <= dims or not dims - covered <= free:
            return False
        for part in parts:
            self.tie_any_(part, whole)
        return True

    def disjoint(self, value: Value, node: fx.Node) -> Value:
        """Planes that have come to share a dimension cannot be told apart any more: all but one kind freeze."""
        planes = list(value.planes)
        clashing = [
            p for i, p in enumerate(planes) if any(varying(p) & varying(q) for j, q in enumerate(planes) if i != j)
        ]
        if not clashing:
            return value
        firm = [plane for plane in clashing if not self.is_soft(plane)]
        losers = [plane for plane in clashing if self.is_soft(plane)] if len(firm) == 1 else clashing
        for plane in losers:
            self.freeze_(plane, node, "two kinds of channel are folded into one dimension here")
        return Value(value.shape, tuple(p for p in planes if not any(p is loser for loser in losers)))


def _meeting(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Group the planes of two values by shared dimensions."""
    clusters: list[tuple[frozenset[int], list[Tensor], list[Tensor]]] = []
    for side, planes in ((0, a), (1, b)):
        for plane in planes:
            dims, left, right = varying(plane), [], []
            (left if side == 0 else right).append(plane)
            apart = []
            for cluster in clusters:
                if cluster[0] & dims:
                    dims, left, right = dims | cluster[0], cluster[1] + left, cluster[2] + right
                else:
                    apart.append(cluster)
            clusters = [*apart, (dims, left, right)]
    return [(left, right) for _, left, right in clusters]
