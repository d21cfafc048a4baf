"""A captured network with gates in it, and the factors that its reads are multiplied by.

requires: a graph that :func:`~l0compress.gates.attach.attach` has rewritten.
ensures:  what gates learn, what the network costs in expectation, and the network without gates, by name.
"""

from __future__ import annotations

import operator
from functools import cached_property, reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from l0compress.gates.hard_concrete import HardConcrete
from l0compress.gates.reach import smallest_cost, smallest_keep
from l0compress.gates.sparse_cost import SparseCost
from l0compress.gates.weight_gates import WeightGate
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups
from l0compress.graph.network import GraphNetwork
from l0compress.graph.reads import Read
from l0compress.graph.weights import Weight

FACTORS = "l0_read_factors"
WEIGHT_GATE = "l0_weight_gate_"


class ReadFactors(nn.Module):
    """The factor of every read, computed from one draw of the gates: a list of tensors, in the order of ``reads``."""

    def __init__(self, reads: tuple[Read, ...], gates: HardConcrete) -> None:
        super().__init__()
        self.gates = gates
        self.shapes = tuple(read.shape for read in reads)
        for position, read in enumerate(reads):
            self.register_buffer(f"moves_{position}", read.moves.clone(), persistent=False)

    def forward(self) -> list[Tensor]:
        return self.factors(self.gates())

    def factors(self, z: Tensor) -> list[Tensor]:
        """The read factors for given gate values ``z`` of shape ``(num_moves,)``."""
        extended = torch.cat([z, z.new_ones(1)])
        return [
            product_of(extended, getattr(self, f"moves_{position}")).view(shape)
            for position, shape in enumerate(self.shapes)
        ]


def product_of(z: Tensor, moves: Tensor) -> Tensor:
    """``z[moves].prod(-1)`` for ``moves`` of shape ``(channels, K)``.

    >>> product_of(torch.tensor([0.5, 0.25, 1.0]), torch.tensor([[0, 2], [0, 1]]))
    tensor([0.5000, 0.1250])
    """
    # Column by column: the backward of prod() is slow where factors are exactly 0, and gates often are.
    return reduce(operator.mul, (z[column] for column in moves.unbind(-1)))


class GatedNetwork(nn.Module):
    """A captured network whose channels, single weights or both carry gates; made by :func:`gate`.

    ``forward`` takes and returns what the user's model does. In training mode the gates are sampled, one draw a call;
    in evaluation mode they are at their median.

    Attributes:
        groups: the moves that the gates stand for, in order; without moves where only weights are gated.
        network: the rewritten graph.
        sparse: the weights that carry gates of their own.
    """

    def __init__(self, groups: Groups, network: GraphNetwork, sparse: tuple[Weight, ...] = ()) -> None:
        super().__init__()
        self.groups = groups
        self.network = network
        self.sparse = sparse

    @property
    def gates(self) -> HardConcrete:
        """The gates of the moves: ``gates.log_alpha`` is what is learned."""
        return self.read_factors.gates

    @property
    def weight_gates(self) -> dict[str, WeightGate]:
        """The gates of single weights by the name of the parameter; empty where only channels are gated."""
        return {
            weight.name: cast(WeightGate, self.network.get_submodule(f"{WEIGHT_GATE}{position}"))
            for position, weight in enumerate(self.sparse)
        }

    @property
    def read_factors(self) -> ReadFactors:
        return cast(ReadFactors, self.network.get_submodule(FACTORS))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def weights(self) -> dict[str, nn.Parameter]:
        """The network's own parameters by their original names, without the gates."""
        return {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if not name.startswith((f"{FACTORS}.", WEIGHT_GATE))
        }

    def gate_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that gates learn: ``log_alpha`` of the moves, and of each gated parameter under its own name."""
        found = {"log_alpha": self.gates.log_alpha} if self.groups.num_moves else {}
        return {**found, **{name: gate.log_alpha for name, gate in self.weight_gates.items()}}

    def expected_cost(self, unit: str) -> Tensor:
        """Expected cost after removal, a scalar in ``params``, ``macs`` or ``bytes``, differentiable in the gates."""
        probability = self.gates.probability_nonzero()
        if not self.sparse:
            return self.groups.expected_cost(probability, unit)
        return self._sparse_cost.expected(self.weight_gates, probability, unit)

    def smallest_cost(self, unit: str, keep: Tensor | None = None) -> int:
        """The cost of the smallest model that hardening can reach; every gated weight keeps one element.

        ``keep``, bool ``(num_moves,)``, says which moves stay; None leaves as few as possible.
        """
        if not self.sparse:
            return smallest_cost(self.groups, unit)
        fewest = smallest_keep(self.groups, torch.zeros(self.groups.num_moves)) if keep is None else keep
        return self._sparse_cost.smallest(fewest, unit)

    def graph(self) -> CapturedGraph:
        """The network without gates, with the weights as they are now (copied)."""
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        return self.groups.graph.with_state(state)

    @cached_property
    def _sparse_cost(self) -> SparseCost:
        return SparseCost(self.groups, self.sparse)
