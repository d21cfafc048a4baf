"""One-shot group magnitude: the baseline that learned gates have to beat.

What is removed is decided before any training, from the weights alone. Source of the score: Li et al., "Pruning Filters
for Efficient ConvNets", ICLR 2017, section 3.1, with the L2 norm over everything that a removal takes, normalised by
group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from l0compress.data.batches import Batch
from l0compress.graph.groups import Groups
from l0compress.graph.labels.values import flattened, varying
from l0compress.graph.nodes.network import attribute
from l0compress.training.limits import Limits
from l0compress.training.methods.one_shot import OneShot
from l0compress.training.problem import Problem


class Magnitude(OneShot):
    """Decide by the norm of what each move removes; of single weights by their magnitudes."""

    name = "magnitude"

    def score(self, limits: Limits, problem: Problem, samples: tuple[Batch, ...]) -> Tensor:
        del problem, samples
        return magnitude_scores(limits.groups)


def magnitude_scores(groups: Groups, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """float64 ``(num_moves,)``: the L2 norm of the parameters that a move removes, over its group's mean.

    ``weights`` are other values of the parameters by name; None takes those of the groups' own graph.

    >>> from l0compress.graph.capture import capture
    >>> from l0compress.graph.groups import find_groups
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.0]])), net[1].weight.data.fill_(4.0)
    >>> groups = find_groups(capture(net, (torch.zeros(2, 2),)))
    >>> (hidden,) = [group for group in groups.groups if group.kind == "channels"]
    >>> [round(score, 3) for score in magnitude_scores(groups)[list(hidden.moves)].tolist()]
    [1.111, 0.889]
    """
    norms = removed_sum(groups, lambda tensor: tensor.detach().double().square(), weights).sqrt()
    means = torch.stack([norms[list(group.moves)].mean() for group in groups.groups])
    return norms / means[groups.group_of_move].clamp_min(torch.finfo(torch.float64).tiny)


def removed_sum(groups: Groups, of: Callable[[Tensor], Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """``(num_moves,)``: the sum, over all elements of parameters that a move removes, of what ``of`` makes of them.

    Differentiable in ``weights``, other values of the parameters by name; on their device, and of the type that ``of``
    returns.
    """
    module = groups.graph.graph_module
    total: Tensor | None = None
    for name, value in groups.labelled.parameters.items():
        tensor = attribute(module, name)
        if not isinstance(tensor, nn.Parameter):
            continue
        found = of(tensor if weights is None else weights.get(name, tensor))
        total = found.new_zeros(groups.num_moves + 1) if total is None else total
        for plane in value.planes:
            (dim,) = varying(plane)
            along = found.movedim(dim, 0).reshape(found.shape[dim], -1).sum(1)
            components = torch.from_numpy(groups.components.of(flattened(plane))).long()
            moves = groups.moves_of_component[components].to(found.device)
            total = total.index_add(0, moves.flatten(), along.unsqueeze(1).expand(moves.shape).flatten())
    return torch.zeros(groups.num_moves, dtype=torch.float64) if total is None else total[:-1]
