"""Gates that are plain numbers: no noise, no distribution, a factor on each move that a method sets or learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0compress.gates.hard_concrete import HardConcrete


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
