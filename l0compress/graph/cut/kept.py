"""What a plan keeps of a tensor, one index list a dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.labels.values import Value, core
from l0compress.graph.operators.cut import Kept


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
