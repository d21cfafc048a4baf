"""Gradual magnitude pruning: masks that close along a cubic schedule while the network is trained.

``s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3``: the sparsity in force at step ``t``, here from ``s_i = 0`` to
the budget's. Every ``dt`` steps the masks are chosen anew from the magnitudes of all weights, masked ones included:
these keep the value with which they were masked, and come back where others have become smaller. Source: Zhu and Gupta,
"To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017, equation 1.
"""

from __future__ import annotations

from torch import Tensor

from l0compress.training.harden import round_to_budget
from l0compress.training.methods.factors import factors_of, masks_of
from l0compress.training.methods.magnitude import magnitude_scores
from l0compress.training.methods.pressure import MOVES, Pressed, Pressure
from l0compress.training.methods.trained import TrainedMoves, TrainedWeights
from l0compress.training.rounding import round_weights


class ClosingMoves(Pressure):
    """Factors of 0 and 1, from the norms of what moves remove."""

    def __init__(self, pressed: Pressed) -> None:
        super().__init__(pressed)
        factors_of(self.network).value.requires_grad_(False)

    def step_(self, progress: float) -> None:
        if self.pressed.is_due(progress):
            limits = self.pressed.limits.at(self.pressed.most_at(progress))
            keep = round_to_budget(limits, self.scores()[MOVES]).keep
            factors_of(self.network).value.copy_(keep)

    def scores(self) -> dict[str, Tensor]:
        return {MOVES: magnitude_scores(self.pressed.limits.groups, self.network.graph().state())}


class ClosingWeights(Pressure):
    """Masks on single weights, from their magnitudes over all layers."""

    def step_(self, progress: float) -> None:
        if self.pressed.is_due(progress):
            limits = self.pressed.limits.at(self.pressed.most_at(progress))
            kept = round_weights(self.network.groups.graph, self.scores(), limits.by_unit)
            for name, mask in masks_of(self.network).items():
                mask.keep.copy_(kept[name])

    def scores(self) -> dict[str, Tensor]:
        weights = self.network.weights()
        return {name: weights[name].detach().abs().cpu() for name in masks_of(self.network)}


class GradualMagnitude(TrainedMoves):
    """Close the moves of smallest norm little by little."""

    name = "gradual-magnitude"
    pressure = ClosingMoves


class GradualWeightMagnitude(TrainedWeights):
    """Mask the smallest weights little by little."""

    name = "gradual-magnitude"
    pressure = ClosingWeights
