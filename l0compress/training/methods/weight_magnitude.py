"""One-shot magnitude of single weights: the baseline that gates on weights have to beat.

What becomes zero is decided from the weights alone; teacher, distillation, budget, rounding, repair and number of
epochs are those of :func:`~l0compress.training.finetune.finetune`. Source of the score: Han et al., "Learning both
Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section 3; across layers or within each as in
Gale et al., "The State of Sparsity in Deep Neural Networks", 2019, section 4.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.weights import prunable_weights
from l0compress.graph.nodes.network import attribute
from l0compress.training.methods.one_shot_weights import OneShotWeights
from l0compress.training.problem import Problem

Scope = Literal["global", "layer"]


class WeightMagnitude(OneShotWeights):
    """Keep the weights of largest magnitude.

    ``scope`` says what is compared: all weights of the network ("global"), or those of one layer with each other, so
    that all layers keep the same share ("layer").
    """

    subject = "Magnitudes"
    scope: ClassVar[Scope] = "global"

    def score(self, graph: CapturedGraph, problem: Problem) -> dict[str, Tensor]:
        del problem
        return weight_scores(graph, self.scope)


class LayerMagnitude(WeightMagnitude):
    """Keep the weights of largest magnitude of each layer, the same share of all."""

    scope = "layer"


def weight_scores(graph: CapturedGraph, scope: Scope) -> dict[str, Tensor]:
    """By name of each weight, of its shape: the magnitudes, or their ranks within the weight as shares of it.

    >>> from l0compress.graph.capture import capture
    >>> net = torch.nn.Linear(4, 1)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0, 0.0, -4.0]]))
    >>> graph = capture(net, (torch.zeros(2, 4),))
    >>> weight_scores(graph, "global")["weight"], weight_scores(graph, "layer")["weight"]
    (tensor([[3., 1., 0., 4.]]), tensor([[0.7500, 0.5000, 0.2500, 1.0000]]))
    """
    magnitudes = {w.name: attribute(graph.graph_module, w.name).detach().abs() for w in prunable_weights(graph)}
    return magnitudes if scope == "global" else {name: _ranks(values) for name, values in magnitudes.items()}


def _ranks(values: Tensor) -> Tensor:
    ranks = torch.empty(values.numel(), dtype=torch.float64)
    ranks[values.flatten().argsort(stable=True)] = torch.arange(1, values.numel() + 1, dtype=torch.float64)
    return (ranks / values.numel()).view(values.shape).to(values.dtype)
