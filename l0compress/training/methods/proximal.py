"""Iterative hard thresholding: after every step of the optimizer, all but the best within the budget become zero.

``x <- argmin over x within the budget of 1/2 sum_i h_i (x_i - x~_i)^2``, with ``x~ = x - g / h``: the proximal step of
the L0 norm. Its answer keeps those of largest ``h_i x~_i^2 = (h_i x_i - g_i)^2 / h_i``. ``g`` and ``h``, gradient and
curvature, are running means: of the gradient, and of its square times the batch size, which is the Fisher information.
Of what is there the score says what would be lost without it, of what is zero what would be won with it.

Unlike masks that close gradually, zeros are real: what is dropped loses its value, the loss is that of the sparse
network with the dense one's gradients, and what comes back does so by its gradient, not by its old magnitude. Source:
Blumensath and Davies, "Iterative hard thresholding for compressed sensing", 2009, equation 2; of networks Jin et al.,
"Training Skinny Deep Neural Networks with Iterative Hard Thresholding Methods", 2016, section 3.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.training.harden import round_to_budget
from l0compress.training.methods.factors import factors_of, masks_of
from l0compress.training.methods.fisher import joint_marginal_cost
from l0compress.training.methods.pressure import MOVES, Pressed, Pressure
from l0compress.training.methods.trained import TrainedMoves, TrainedWeights
from l0compress.training.rounding import round_weights
from l0compress.training.state_dicts import StateDict, prefixed, under

_DECAY = 0.95  # of the running means


def proximal_score(x: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
    """``h x~^2`` with ``x~ = x - g / h``, elementwise; 0 where there is no curvature.

    >>> proximal_score(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    tensor([4., 9., 0.])
    """
    return (curvature * x - gradient).square() / curvature.clamp_min(torch.finfo(x.dtype).tiny)


class HardThreshold(Pressure):
    """Keeps as many of :meth:`values` as the budget of the moment does, those of the best scores."""

    def __init__(self, pressed: Pressed) -> None:
        super().__init__(pressed)
        self._means = {name: torch.zeros_like(value.detach()) for name, value in self.values().items()}
        self._squares = {name: torch.zeros_like(value.detach()) for name, value in self.values().items()}
        self._kept = sum(value.numel() for value in self.values().values())

    @abstractmethod
    def values(self) -> dict[str, nn.Parameter]:
        """What is thresholded, by name."""

    @abstractmethod
    def rounded(self, scores: dict[str, Tensor], most: tuple[int, ...]) -> dict[str, Tensor]:
        """By name, bool: what is kept within bounds."""

    def before_step_(self) -> None:
        for name, value in self.values().items():
            if value.grad is not None:
                self._means[name].lerp_(value.grad, 1 - _DECAY)
                self._squares[name].lerp_(value.grad.square(), 1 - _DECAY)

    def step_(self, progress: float) -> None:
        scores = self.scores()
        if self.pressed.is_due(progress):
            keep = self.rounded({name: each.cpu() for name, each in scores.items()}, self.pressed.most_at(progress))
            self._kept = sum(int(mask.sum()) for mask in keep.values())
        else:
            keep = _largest(scores, self._kept)
        with torch.no_grad():
            for name, value in self.values().items():
                value.mul_(keep[name].to(value.device))

    def scores(self) -> dict[str, Tensor]:
        # Means that begin at 0 are too small by the same factor, all of them, and so are the scores.
        size = self.pressed.problem.batch_size
        return {
            name: proximal_score(value.detach(), self._means[name], self._squares[name] * size)
            for name, value in self.values().items()
        }

    def state_dict(self) -> StateDict:
        means, squares = prefixed("means", self._means), prefixed("squares", self._squares)
        return {"kept": self._kept, **means, **squares}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._kept = int(state_dict["kept"])
        for kind, own in (("means", self._means), ("squares", self._squares)):
            for name, tensor in under(kind, state_dict).items():
                own[name].copy_(tensor)


def _largest(scores: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """By name, bool: the ``count`` highest of all scores."""
    flat = torch.cat([each.flatten() for each in scores.values()])
    keep = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    keep[flat.argsort(descending=True, stable=True)[:count]] = True
    parts = keep.split([each.numel() for each in scores.values()])
    return {name: part.view(each.shape) for (name, each), part in zip(scores.items(), parts, strict=True)}


class HardThresholdMoves(HardThreshold):
    """Thresholds a factor on each move, by its score over what the removal saves."""

    def values(self) -> dict[str, nn.Parameter]:
        return {MOVES: factors_of(self.network).value}

    def learned(self) -> dict[str, nn.Parameter]:
        return self.values()

    def scores(self) -> dict[str, Tensor]:
        losses = super().scores()[MOVES]
        costs = joint_marginal_cost(self.pressed.limits, losses.cpu().double())
        return {MOVES: losses / costs.to(losses)}

    def rounded(self, scores: dict[str, Tensor], most: tuple[int, ...]) -> dict[str, Tensor]:
        return {MOVES: round_to_budget(self.pressed.limits.at(most), scores[MOVES]).keep}

    def step_(self, progress: float) -> None:
        with torch.no_grad():
            factors_of(self.network).value.clamp_(min=0)
        super().step_(progress)


class HardThresholdWeights(HardThreshold):
    """Thresholds single weights."""

    def values(self) -> dict[str, nn.Parameter]:
        weights = self.network.weights()
        return {name: weights[name] for name in masks_of(self.network)}

    def rounded(self, scores: dict[str, Tensor], most: tuple[int, ...]) -> dict[str, Tensor]:
        return round_weights(self.network.groups.graph, scores, self.pressed.limits.at(most).by_unit)


class Proximal(TrainedMoves):
    """Threshold factors on moves after every step."""

    name = "proximal"
    pressure = HardThresholdMoves


class ProximalWeights(TrainedWeights):
    """Threshold single weights after every step."""

    name = "proximal"
    pressure = HardThresholdWeights
