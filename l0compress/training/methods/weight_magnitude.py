"""One-shot magnitude of single weights: the baseline that gates on weights have to beat.

What becomes zero is decided at once, from the dense weights alone; teacher, distillation, budget, rounding and number
of epochs are those of :func:`~l0compress.training.finetune.finetune`. Source of the score: Han et al., "Learning both
Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section 3; across layers or within each as in
Gale et al., "The State of Sparsity in Deep Neural Networks", 2019, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from l0compress.data import Data
from l0compress.gates.sparse_cost import SparseCost
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import groups_without_moves
from l0compress.graph.network import attribute
from l0compress.graph.plan import KeepPlan
from l0compress.graph.shrink import shrink
from l0compress.graph.weights import find_weights
from l0compress.training.events import OnEvent, ignore
from l0compress.training.finetune import FinetuneResult, Hardened, course_of, finish, start
from l0compress.training.randomness import seeded
from l0compress.training.rounding import round_weights
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import reachable_target, the_one

Scope = Literal["global", "layer"]


def weight_magnitude(
    graph: CapturedGraph,
    data: Data,
    target: Mapping[str, float] | str,
    *,
    scope: Scope = "global",
    settings: FinetuneSettings | None = None,
    on_event: OnEvent = ignore,
) -> FinetuneResult:
    """Compress a trained model by one-shot magnitude of its weights; result and errors as for ``finetune``.

    ``scope`` says what is compared: all weights of the network ("global"), or those of one layer with each other, so
    that all layers keep the same share ("layer").
    """
    settings = FinetuneSettings() if settings is None else settings
    with seeded(settings.seed, settings.device):
        unit, wanted = the_one(target, names="params, macs and bytes")
        groups = groups_without_moves(graph)
        costs = SparseCost(groups, find_weights(graph))
        keep = torch.ones(0, dtype=torch.bool)
        reachable = reachable_target(groups, wanted, unit, smallest=lambda unit: costs.smallest(keep, unit))
        run = start(graph, course_of(graph, data, settings), on_event)
        masks = round_weights(graph, weight_scores(graph, scope), target=reachable, unit=unit)
        plan = KeepPlan.everything(groups).with_masks(masks)
        return finish(run, Hardened(plan, shrink(graph, plan).state()), unit=unit, first_epoch=0)


def weight_scores(graph: CapturedGraph, scope: Scope) -> dict[str, Tensor]:
    """By name of each weight, of its shape: the magnitudes, or their ranks within the weight as shares of it.

    >>> from l0compress.graph.capture import capture
    >>> net = torch.nn.Linear(4, 1)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0, 0.0, -4.0]]))
    >>> graph = capture(net, (torch.zeros(2, 4),))
    >>> weight_scores(graph, "global")["weight"], weight_scores(graph, "layer")["weight"]
    (tensor([[3., 1., 0., 4.]]), tensor([[0.7500, 0.5000, 0.2500, 1.0000]]))
    """
    magnitudes = {w.name: attribute(graph.graph_module, w.name).detach().abs() for w in find_weights(graph)}
    return magnitudes if scope == "global" else {name: _ranks(values) for name, values in magnitudes.items()}


def _ranks(values: Tensor) -> Tensor:
    ranks = torch.empty(values.numel(), dtype=torch.float64)
    ranks[values.flatten().argsort(stable=True)] = torch.arange(1, values.numel() + 1, dtype=torch.float64)
    return (ranks / values.numel()).view(values.shape).to(values.dtype)
