"""Norms of the weights in expectation over their gates: the L2 and L1 terms that join the L0 norm in one objective.

``E ||theta||_2^2 = sum_j P(z_j != 0) theta_j^2``, and likewise ``E ||theta||_1``: a weight is only charged for while
its gates are open, and gates are not shrunk beside. Source: Louizos, Welling and Kingma, "Learning Sparse Neural
Networks through L0 Regularization", ICLR 2018, section 2.3: the prior's deviation follows the gate, so that ``z`` drops
out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.devices import constant_on, widest_float
from l0compress.gates.attach import GatedNetwork
from l0compress.graph.labels.values import flattened, varying


@dataclass(frozen=True)
class ExpectedNorms:
    """``l2 / 2 * E ||theta||_2^2 + l1 * E ||theta||_1``; half of the square, so that ``l2`` is a weight decay.

    Of all parameters of two or more dimensions, as weight decay is.
    """

    l2: float = 0.0
    l1: float = 0.0

    @property
    def matter(self) -> bool:
        """Whether there is anything to add."""
        return self.l2 > 0 or self.l1 > 0

    def of(self, gated: GatedNetwork) -> Tensor:
        """The term: a scalar, differentiable in weights and gates."""
        total = torch.zeros((), dtype=widest_float(gated.gates.log_alpha.device), device=gated.gates.log_alpha.device)
        if self.l2:
            total = total + self.l2 / 2 * expected_power(gated, 2)
        if self.l1:
            total = total + self.l1 * expected_power(gated, 1)
        return total


def expected_power(gated: GatedNetwork, power: int) -> Tensor:
    """``sum_j P(z_j != 0) |theta_j|^power``, where all gates that an element depends on have to be open.

    >>> from l0compress.gates.attach import gate
    >>> from l0compress.graph.capture import capture
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0], [1.0]])), net[1].weight.data.zero_()
    >>> gated = gate(capture(net, (torch.zeros(2, 1),)), log_alpha=-9.0)
    >>> gated.gates.log_alpha.data[0] = 90.0  # the first unit is there, the second hardly
    >>> round(expected_power(gated, 2).item(), 2)
    9.0
    """
    alive = gated.groups.alive_probabilities(gated.gates.probability_nonzero())
    single = {name: gates.probability_nonzero() for name, gates in gated.weight_gates.items()}
    terms = [
        _expected(weight.abs().pow(power) if power == 1 else weight.square(), single.get(name), gated, name, alive)
        for name, weight in gated.weights().items()
        if weight.dim() > 1
    ]
    return torch.stack(terms).sum() if terms else alive.new_zeros(())


def _expected(values: Tensor, present: Tensor | None, gated: GatedNetwork, name: str, alive: Tensor) -> Tensor:
    left = values if present is None else values * present
    labels = gated.groups.labelled.parameters.get(name)
    lines = {
        min(varying(plane)): torch.from_numpy(gated.groups.components.of(flattened(plane))).long()
        for plane in (() if labels is None else labels.planes)
    }
    for dim in reversed(range(left.dim())):
        if dim in lines:
            along = alive.index_select(0, constant_on(lines[dim], alive.device)).to(left.dtype)
            left = left.movedim(dim, -1) @ along
        else:
            left = left.sum(dim)
    return left.to(alive.dtype)
