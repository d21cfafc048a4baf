"""First-order Taylor scores: how much the task's loss changes, by its gradient, if a gate or a weight becomes zero.

``score_g = mean over batches |dL/dg * g|``; gates are at 1. Source: Molchanov et al., "Pruning Convolutional Neural
Networks for Resource Efficient Inference", ICLR 2017, equation 8, put on gates as in Molchanov et al., "Importance
Estimation for Neural Network Pruning", CVPR 2019, section 3.1. What a removal saves does not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.data.batches import Batch
from l0compress.gates.attach import attach
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups
from l0compress.graph.groups.weights import prunable_weights
from l0compress.training.limits import Limits
from l0compress.training.losses import Objective, cross_entropy, mse
from l0compress.training.methods.factors import Factors
from l0compress.training.methods.one_shot import PROBE, OneShot
from l0compress.training.methods.one_shot_weights import OneShotWeights
from l0compress.training.outputs import logits_of
from l0compress.training.problem import Problem
from l0compress.training.reading import VALUES
from l0compress.training.samples import num_samples_for, take_samples


def task_loss(outputs: Any, targets: Tensor | None, objective: Objective, generator: torch.Generator) -> Tensor:
    """The task's own loss; where there are no labels, on such as the model itself would predict.

    Classes are drawn from the model's probabilities, values about what it returns, with the variance that squared
    errors are divided by. On its most likely answers the loss of a model would have next to no gradient.
    """
    if targets is not None:
        return objective.score(outputs, targets, None)
    if objective.kind == VALUES:
        values = logits_of(outputs)
        noise = torch.randn(values.shape, generator=generator).to(values) * objective.reading.scale**0.5
        return mse(values, values.detach() + noise) / objective.reading.scale
    scores = logits_of(objective.scores(outputs, None))
    p = scores.detach().float().softmax(-1).flatten(0, -2).cpu()
    drawn = torch.multinomial(p, 1, generator=generator).view(scores.shape[:-1]).to(scores.device)
    return cross_entropy(scores, drawn)


def first_order(
    network: nn.Module, at: Sequence[Tensor], samples: Sequence[Batch], objective: Objective, *, seed: int = 0
) -> list[Tensor]:
    """float64, of the shapes of ``at``: the mean over samples of ``|gradient * value|``, one gradient a batch.

    Args:
        at: parameters of ``network``, whose mode and device stay as they are.
        seed: of the answers that are drawn where samples have no labels.
    """
    draws = torch.Generator().manual_seed(seed)
    totals = [torch.zeros(value.shape, dtype=torch.float64) for value in at]
    for batch in samples:
        loss = task_loss(batch.run(network), batch.targets, objective, draws)
        gradients = torch.autograd.grad(loss, at, allow_unused=True)
        for total, value, gradient in zip(totals, at, gradients, strict=True):
            if gradient is not None:
                total += (gradient * value.detach()).abs().cpu().double() * len(batch)
    count = max(sum(map(len, samples)), 1)
    return [total / count for total in totals]


def taylor_scores(
    groups: Groups, samples: Sequence[Batch], objective: Objective, *, device: str = "cpu", seed: int = 0
) -> Tensor:
    """float64 ``(num_moves,)``: the first-order scores of the gates, all open.

    >>> from l0compress.graph.capture import capture
    >>> from l0compress.graph.groups import find_groups
    >>> from l0compress.training.losses import objective_for
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[1].weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0]])  # the model says 3 * 1 + 1 * 2 = 5
    >>> groups = find_groups(capture(net, (torch.zeros(2, 2),)))
    >>> (hidden,) = [group for group in groups.groups if group.kind == "channels"]
    >>> scores = taylor_scores(groups, [Batch((x,), {}, y)], objective_for("mse", y, x[:, :1]))
    >>> scores[list(hidden.moves)].tolist()  # |2 (5 - 4) * 3 * 1| and |2 (5 - 4) * 1 * 2|
    [6.0, 4.0]
    """
    gates = Factors(groups.num_moves)
    network = attach(groups, gates).eval().to(device)
    for weight in network.weights().values():
        weight.requires_grad_(False)
    return first_order(network, [gates.value], samples, objective, seed=seed)[0]


class Taylor(OneShot):
    """Decide by how much of the loss depends on each move, to first order."""

    name = "taylor"

    def score(self, limits: Limits, problem: Problem, samples: tuple[Batch, ...]) -> Tensor:
        settings = problem.settings
        return taylor_scores(limits.groups, samples, problem.objective, device=settings.device, seed=settings.seed)


class TaylorWeights(OneShotWeights):
    """Keep the single weights on which the loss depends most, to first order."""

    subject = "Taylor scores"

    def score(self, graph: CapturedGraph, problem: Problem) -> dict[str, Tensor]:
        network = graph.module().to(problem.device)
        names = [weight.name for weight in prunable_weights(graph)]
        parameters = dict(network.named_parameters(remove_duplicate=False))
        samples = take_samples(problem, num_samples_for(graph), batch_size=PROBE)
        at = [parameters[name] for name in names]
        scores = first_order(network, at, samples, problem.objective, seed=problem.settings.seed)
        return dict(zip(names, scores, strict=True))
