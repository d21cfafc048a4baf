"""Fisher information of single weights: what the model's own predictions lose if a weight becomes zero.

To second order, and by itself, that is half of ``information * weight ** 2``, the information being the diagonal of the
Gauss-Newton matrix of the distance from the dense model's predictions. Source: LeCun, Denker and Solla, "Optimal Brain
Damage", NeurIPS 1989, equation 5, with the curvature of Theis et al., "Faster gaze prediction with dense networks and
Fisher pruning", 2018, section 2.2; here without labels, by :func:`~l0compress.training.curvature.probe`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l0compress.data.batches import Batch
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.weights import Weight, prunable_weights
from l0compress.training.curvature import probe
from l0compress.training.losses import Objective
from l0compress.training.methods.one_shot import PROBE, finite
from l0compress.training.methods.one_shot_weights import OneShotWeights
from l0compress.training.problem import Problem
from l0compress.training.samples import num_samples_for, take_samples


def weight_information(
    graph: CapturedGraph, batches: Sequence[Batch], objective: Objective, *, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor]:
    """By name of each weight that may be sparse, of its shape, float64: the mean curvature over samples.

    Each batch is one probe, as in :func:`~l0compress.training.methods.fisher.fisher_information`.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> from l0compress.training.losses import objective_for
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> graph = capture(nn.Linear(2, 1, bias=False), (torch.zeros(2, 2),))
    >>> found = weight_information(graph, [Batch((x,), {})], objective_for("mse", None, x[:, :1]))
    >>> found["weight"].round().tolist()  # twice the squares of x
    [[2.0, 8.0]]
    """
    network = graph.module().eval().to(device)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    names = [weight.name for weight in prunable_weights(graph)]
    at = [parameters[name] for name in names]
    draws = torch.Generator().manual_seed(seed)
    totals, count = [torch.zeros(value.shape, dtype=torch.float64) for value in at], 0
    for batch in batches:
        batch = batch.to(device)
        scalar = probe(batch.run(network), batch.targets, objective, draws)
        gradients = torch.autograd.grad(scalar, at, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total += gradient.cpu().double().square()
        count += len(batch)
    return {name: total / max(count, 1) for name, total in zip(names, totals, strict=True)}


def saliencies(graph: CapturedGraph, problem: Problem) -> dict[str, Tensor]:
    """By name of each weight, of its shape, float64: the information on samples of the training part, times w squared.

    Raises:
        DivergedError: they are not finite.
    """
    settings = problem.settings
    samples = take_samples(problem, num_samples_for(graph), batch_size=PROBE)
    found = weight_information(graph, samples, problem.objective, device=settings.device, seed=settings.seed)
    state = graph.state()
    return {name: finite(each * state[name].cpu().double().square()) for name, each in found.items()}


def relative_costs(weights: Sequence[Weight], units: Sequence[str]) -> dict[str, float | Tensor]:
    """By name, what each element costs over what elements cost on average: a number, or one of the weight's shape.

    Of several units it is the mean. All elements are one parameter each, and about as many bytes; of multiplications
    some cost more than others.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> net = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(6, 3))
    >>> weights = prunable_weights(capture(net, (torch.zeros(2, 1, 3),)))
    >>> relative_costs(weights, ["params"]), relative_costs(weights, ["macs"])  # 2 of 3 multiplications, 18 of one
    ({'0.weight': 1.0, '2.weight': 1.0}, {'0.weight': 2.5, '2.weight': 0.8333333333333334})
    """
    each = {weight.name: weight.macs_each() for weight in weights}
    total = sum(float(torch.as_tensor(each[weight.name]).expand(weight.shape).sum()) for weight in weights)
    average = total / max(sum(weight.numel for weight in weights), 1)
    counted = sum(unit == "macs" for unit in units) / len(units)
    return {name: 1 - counted + counted * macs / average for name, macs in each.items()}


class FisherWeights(OneShotWeights):
    """Keep the single weights that the predictions would lose most with, for what each of them costs."""

    subject = "Fisher scores"

    def score(self, graph: CapturedGraph, problem: Problem) -> dict[str, Tensor]:
        costs = relative_costs(prunable_weights(graph), tuple(self.limits.by_unit))
        return {name: losses / costs[name] for name, losses in saliencies(graph, problem).items()}
