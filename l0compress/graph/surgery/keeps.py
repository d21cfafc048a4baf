"""What a plan keeps of a tensor, one index list a dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.graph.plan import KeepPlan
from l0compress.graph.values import Shape, Value, core


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays of one tensor.

    Attributes:
        dense: its shape in the dense model.
        indices: per dimension the sorted kept indices, None where it stays whole.
        ragged: what is left is no rectangle; only an index_select over its source can make the next layout.
    """

    dense: Shape
    indices: tuple[Tensor | None, ...]
    ragged: bool = False

    @property
    def shape(self) -> Shape:
        return tuple(size if keep is None else len(keep) for size, keep in zip(self.dense, self.indices, strict=True))

    @property
    def whole(self) -> bool:
        return not self.ragged and all(keep is None for keep in self.indices)

    def along(self, dim: int) -> Tensor:
        """Kept indices along ``dim``, all of them where it stays whole."""
        keep = self.indices[dim]
        return torch.arange(self.dense[dim]) if keep is None else keep


def kept_of(value: Value, plan: KeepPlan) -> Kept:
    """Read a tensor's kept indices off the labels of its planes."""
    indices: list[Tensor | None] = [None] * len(value.shape)
    for plane in value.planes:
        small = core(plane)
        alive = plan.alive[torch.from_numpy(plan.groups.components.of(small.contiguous())).long()]
        if bool(alive.all()):
            continue
        rectangle = torch.ones((1,) * small.dim(), dtype=torch.bool)
        for dim in range(small.dim()):
            if small.shape[dim] > 1:
                line = alive.movedim(dim, 0).reshape(small.shape[dim], -1).any(1)
                rectangle = rectangle & line.view([-1 if d == dim else 1 for d in range(small.dim())])
                indices[dim] = None if bool(line.all()) else line.nonzero().flatten()
        if not torch.equal(rectangle.expand(alive.shape), alive):
            return Kept(value.shape, (None,) * len(value.shape), ragged=True)
    return Kept(value.shape, tuple(indices))
