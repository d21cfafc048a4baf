"""Gates that are plain numbers, without noise: a factor on each move, or a mask on a weight, set or learned."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from l0compress.gates.attach import GatedNetwork
from l0compress.gates.hard_concrete import HardConcrete
from l0compress.gates.weight_gates import WeightGate


class Factors(HardConcrete):
    """``num_gates`` factors, all 1 at first, in ``value``; calling it returns them, in training and in evaluation.

    >>> factors = Factors(2)
    >>> factors(), factors.median().requires_grad
    (Parameter containing:
    tensor([1., 1.], requires_grad=True), True)
    """

    def __init__(self, num_gates: int) -> None:
        super().__init__(num_gates)
        self.log_alpha.requires_grad_(False)
        self.value = nn.Parameter(torch.ones(num_gates))

    def forward(self) -> Tensor:
        return self.value

    def median(self) -> Tensor:
        return self.value

    def probability_nonzero(self) -> Tensor:
        """1 where a factor is not zero, else 0."""
        return (self.value.detach() != 0).to(self.value.dtype)


class WeightMask(WeightGate):
    """A mask on one weight, in ``keep``, bool of its shape, True at first; what it drops is 0 and learns nothing.

    >>> mask = WeightMask((1, 2))
    >>> mask.keep[0, 1] = False
    >>> mask(torch.tensor([[3.0, 3.0]]))
    tensor([[3., 0.]])
    """

    keep: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(torch.zeros(0))
        self.log_alpha.requires_grad_(False)
        self.register_buffer("keep", torch.ones(shape, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep


def factors_of(network: GatedNetwork) -> Factors:
    """The factors of a network that they were attached to."""
    return cast(Factors, network.gates)


def masks_of(network: GatedNetwork) -> dict[str, WeightMask]:
    """The masks of a network that they were attached to, by the name of the weight."""
    return {name: cast(WeightMask, mask) for name, mask in network.weight_gates.items()}
