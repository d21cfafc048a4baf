"""L1: the sum of magnitudes is held down, of a factor on each move or of single weights.

``sum |z_g| <= share of what it is at first``. Moves: a factor ``z_g >= 0`` on each, 1 at first, learned together with
the weights, as the scales of batch norms are in Liu et al., "Learning Efficient Convolutional Networks through Network
Slimming", ICCV 2017, equation 1; put where gates would be, it does not need a batch norm. Weights: Han et al.,
"Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section 3.1. What is smallest goes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0compress.training.methods.factors import factors_of, masks_of
from l0compress.training.methods.norms import NormPressure
from l0compress.training.methods.pressure import MOVES
from l0compress.training.methods.trained import TrainedMoves, TrainedWeights


class FactorL1(NormPressure):
    """Holds down the sum of the factors, which never become negative."""

    def learned(self) -> dict[str, nn.Parameter]:
        return {MOVES: factors_of(self.network).value}

    def norm(self) -> Tensor:
        return factors_of(self.network).value.sum()

    def step_(self, progress: float) -> None:
        super().step_(progress)
        with torch.no_grad():
            factors_of(self.network).value.clamp_(min=0)

    def scores(self) -> dict[str, Tensor]:
        return {MOVES: factors_of(self.network).value.detach().cpu()}


class WeightL1(NormPressure):
    """Holds down the sum of the magnitudes of all weights that may become zero."""

    def norm(self) -> Tensor:
        weights = self.network.weights()
        return torch.stack([weights[name].abs().sum() for name in masks_of(self.network)]).sum()

    def scores(self) -> dict[str, Tensor]:
        weights = self.network.weights()
        return {name: weights[name].detach().abs() for name in masks_of(self.network)}


class L1(TrainedMoves):
    """Shrink factors on moves, then remove those with the smallest."""

    name = "l1"
    pressure = FactorL1


class L1Weights(TrainedWeights):
    """Shrink single weights, then remove the smallest."""

    name = "l1"
    pressure = WeightL1
