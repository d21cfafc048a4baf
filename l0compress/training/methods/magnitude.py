"""One-shot group magnitude: the baseline that learned gates have to beat.

What is removed is decided before any training, from the weights alone. Source of the score: Li et al., "Pruning Filters
for Efficient ConvNets", ICLR 2017, section 3.1, with the L2 norm over everything that a removal takes, normalised by
group.
"""

from __future__ import annotations

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


def magnitude_scores(groups: Groups) -> Tensor:
    """float64 ``(num_moves,)``: the L2 norm of the parameters that a move removes, over its group's mean.

    >>> from l0compress.graph.capture import capture
    >>> from l0compress.graph.groups import find_groups
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.0]])), net[1].weight.data.fill_(4.0)
    >>> groups = find_groups(capture(net, (torch.zeros(2, 2),)))
    >>> (hidden,) = [group for group in groups.groups if group.kind == "channels"]
    >>> [round(score, 3) for score in magnitude_scores(groups)[list(hidden.moves)].tolist()]
    [1.111, 0.889]
    """
    squares = torch.zeros(groups.num_moves + 1, dtype=torch.float64)
    for name, value in groups.labelled.parameters.items():
        tensor = attribute(groups.graph.graph_module, name)
        if not isinstance(tensor, nn.Parameter):
            continue
        for plane in value.planes:
            (dim,) = varying(plane)
            along = tensor.detach().double().square().movedim(dim, 0).reshape(tensor.shape[dim], -1).sum(1)
            components = torch.from_numpy(groups.components.of(flattened(plane))).long()
            moves = groups.moves_of_component[components]
            squares.index_add_(0, moves.flatten(), along.unsqueeze(1).expand(moves.shape).flatten())
    norms = squares[:-1].sqrt()
    means = torch.stack([norms[list(group.moves)].mean() for group in groups.groups])
    return norms / means[groups.group_of_move].clamp_min(torch.finfo(torch.float64).tiny)
