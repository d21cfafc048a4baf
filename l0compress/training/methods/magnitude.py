"""One-shot group magnitude: the baseline that learned gates have to beat.

What is removed is decided at once, from the dense weights alone; teacher, distillation, budget, rounding and number of
epochs are those of :func:`~l0compress.training.finetune.finetune`. Source of the score: Li et al., "Pruning Filters
for Efficient ConvNets", ICLR 2017, section 3.1, with the L2 norm over everything that a removal takes, normalised by
group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from l0compress.data import Data
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups, find_groups
from l0compress.graph.network import attribute
from l0compress.graph.shrink import shrink
from l0compress.graph.values import flattened, varying
from l0compress.training.events import OnEvent, ignore
from l0compress.training.finetune import FinetuneResult, Hardened, course_of, finish, start
from l0compress.training.harden import decide
from l0compress.training.randomness import seeded
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import reachable_target, the_one


def magnitude(
    graph: CapturedGraph,
    data: Data,
    target: Mapping[str, float] | str,
    *,
    settings: FinetuneSettings | None = None,
    on_event: OnEvent = ignore,
) -> FinetuneResult:
    """Compress a trained model by one-shot group magnitude; arguments, result and errors as for ``finetune``."""
    settings = FinetuneSettings() if settings is None else settings
    with seeded(settings.seed, settings.device):
        unit, wanted = the_one(target, names="params, macs and bytes")
        groups = find_groups(graph)
        reachable = reachable_target(groups, wanted, unit)
        run = start(graph, course_of(graph, data, settings), on_event)
        plan = decide(groups, magnitude_scores(groups), target=reachable, unit=unit)
        return finish(run, Hardened(plan, shrink(graph, plan).state()), unit=unit, first_epoch=0)


def magnitude_scores(groups: Groups) -> Tensor:
    """float64 ``(num_moves,)``: the L2 norm of the parameters that a move removes, over its group's mean.

    >>> from l0compress.graph.capture import capture
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
