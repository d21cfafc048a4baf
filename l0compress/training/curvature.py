"""Probes: random linear readings of a model's outputs whose squared gradient is, on average, the curvature.

Where a model's outputs move by ``d``, their distance from what they were grows by ``d' H d / 2``, ``H`` being the
Hessian of the distance at no distance: ``diag(p) - p p'`` of a divergence of class distributions, a multiple of the
identity of a squared error. A vector ``v`` with ``E[v v'] = H`` makes one backward pass through ``v' outputs`` enough:
its squared gradient by any parameter has the Gauss-Newton matrix's diagonal as its mean, of all samples of a batch
together. That is the Fisher information of the model's own predictions, and takes no labels.

Source: Martens, "New insights and perspectives on the natural gradient method", JMLR 2020, sections 9 and 10; random
signs as in Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from l0compress.training.losses import Objective
from l0compress.training.outputs import IGNORED, class_last, logits_of, others_of
from l0compress.training.reading import VALUES


def probe(outputs: Any, targets: Tensor | None, objective: Objective, generator: torch.Generator) -> Tensor:
    """A scalar whose squared gradient estimates the curvature of the distance from ``outputs``, summed over samples.

    Args:
        outputs: what the model returns, with gradients.
        targets: say where the classes lie and which positions do not count; their values are not used otherwise.
        objective: how outputs are compared.
        generator: random signs are drawn from it, on the CPU; the global random state is left alone.

    >>> from l0compress.training.losses import objective_for
    >>> logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    >>> objective = objective_for("auto", torch.tensor([0]), logits)
    >>> draws = torch.Generator().manual_seed(0)
    >>> torch.autograd.grad(probe(logits, None, objective, draws), logits)[0].square()  # p (1 - p)
    tensor([[0.2500, 0.2500]])
    """
    total = _main_probe(outputs, targets, objective, generator)
    for other, scale in zip(others_of(outputs), objective.reading.others, strict=False):
        total = total + _value_probe(other, scale, generator)
    return total


def _main_probe(outputs: Any, targets: Tensor | None, objective: Objective, generator: torch.Generator) -> Tensor:
    if objective.kind == VALUES:
        return _value_probe(logits_of(outputs), objective.reading.scale, generator)
    labels = objective.labels_in(targets)
    scores = logits_of(objective.scores(outputs, labels))
    counted = None
    if labels is not None:
        scores, counted = class_last(scores, labels), labels.long() != IGNORED
    found = _class_probe(scores, counted, generator)
    if objective.reading.guessed:
        found = found + _value_probe(logits_of(outputs), objective.reading.scale, generator)
    return found


def _class_probe(scores: Tensor, counted: Tensor | None, generator: torch.Generator) -> Tensor:
    """Of the mean divergence over each sample's positions; ``scores`` has its classes last."""
    p = scores.detach().float().softmax(-1)
    direction = _direction(p, generator)
    if counted is not None:
        direction = direction * counted.unsqueeze(-1)
    positions = math.prod(scores.shape[1:-1])
    return (scores.float() * direction).sum() / math.sqrt(max(positions, 1))


def _direction(p: Tensor, generator: torch.Generator) -> Tensor:
    """Random vectors of the shape of the distributions ``p``, with the second moments ``diag(p) - p p'``."""
    if p.shape[-1] == 2:
        # The matrix has rank one here, so that one sign says all.
        half = p.prod(-1, keepdim=True).sqrt() * _signs(p[..., :1], generator)
        return torch.cat([half, -half], -1)
    signed = p.sqrt() * _signs(p, generator)
    return signed - p * signed.sum(-1, keepdim=True)


def _value_probe(values: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Of the mean squared error over each sample's elements, over ``scale``."""
    elements = math.prod(values.shape[1:])
    return (values.float() * _signs(values, generator)).sum() * math.sqrt(2 / (max(elements, 1) * scale))


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.float32)
    return (drawn * 2 - 1).to(like.device)
