"""Random scores: what is left if nothing is known, and the least that any other method has to beat.

``score ~ U(0, 1)``, independent of model and data. Source: Mittal et al., "Recovering from Random Pruning: On the
Plasticity of Deep Convolutional Neural Networks", WACV 2018, who found that fine-tuning makes up for much of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l0compress.data.batches import Batch
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.weights import prunable_weights
from l0compress.training.limits import Limits
from l0compress.training.methods.one_shot import OneShot
from l0compress.training.methods.one_shot_weights import OneShotWeights
from l0compress.training.problem import Problem


def random_scores(count: int, *, seed: int) -> Tensor:
    """float64 ``(count,)``, uniform in [0, 1); the same for the same seed. The global random state stays as it is.

    >>> bool((random_scores(4, seed=0) == random_scores(4, seed=0)).all()), bool((random_scores(4, seed=1) < 1).all())
    (True, True)
    """
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Random(OneShot):
    """Decide at random; the seed says how."""

    name = "random"

    def score(self, limits: Limits, problem: Problem, samples: tuple[Batch, ...]) -> Tensor:
        del samples
        return random_scores(limits.groups.num_moves, seed=problem.settings.seed)


class RandomWeights(OneShotWeights):
    """Keep single weights at random."""

    subject = "Random scores"

    def score(self, graph: CapturedGraph, problem: Problem) -> dict[str, Tensor]:
        weights = prunable_weights(graph)
        drawn = random_scores(sum(weight.numel for weight in weights), seed=problem.settings.seed)
        parts = drawn.split([weight.numel for weight in weights])
        return {weight.name: part.view(weight.shape) for weight, part in zip(weights, parts, strict=True)}
