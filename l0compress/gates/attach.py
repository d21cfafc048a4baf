"""Gates in a network: every read of a gated channel is multiplied by its gates' value, and so is every gated weight.

requires: a :class:`Groups`, that is a graph, its closed removals (moves) and where channels are read.
ensures:  a trainable module with one gate a move, shared by all readers of its channels, and where single weights are
          gated one gate an element; with gates of 0 and 1 it computes what the masked dense model computes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, reduce
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from l0compress.errors import InputError, NothingToPruneError
from l0compress.gates.hard_concrete import OPEN_LOG_ALPHA, STRETCH, TEMPERATURE, HardConcrete, Stretch
from l0compress.gates.reach import smallest_cost, smallest_keep
from l0compress.gates.sparse_cost import SparseCost
from l0compress.gates.weight_gates import WeightGate
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups, find_groups, groups_without_moves
from l0compress.graph.network import GraphNetwork, Place, argument_at, attribute, network_of, put_argument_
from l0compress.graph.plan import KeepPlan
from l0compress.graph.reads import Read
from l0compress.graph.weights import Weight, find_weights

Granularity = Literal["structured", "weights", "both"]
GRANULARITIES: tuple[Granularity, ...] = ("structured", "weights", "both")

_FACTORS = "l0_read_factors"
_WEIGHT_GATE = "l0_weight_gate_"


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
            weight.name: cast(WeightGate, self.network.get_submodule(f"{_WEIGHT_GATE}{position}"))
            for position, weight in enumerate(self.sparse)
        }

    @property
    def read_factors(self) -> ReadFactors:
        return cast(ReadFactors, self.network.get_submodule(_FACTORS))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def weights(self) -> dict[str, nn.Parameter]:
        """The network's own parameters by their original names, without the gates."""
        return {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if not name.startswith((f"{_FACTORS}.", _WEIGHT_GATE))
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


def gate(
    graph: CapturedGraph,
    *,
    granularity: Granularity = "structured",
    log_alpha: float = OPEN_LOG_ALPHA,
    temperature: float = TEMPERATURE,
    stretch: Stretch = STRETCH,
) -> GatedNetwork:
    """Attach hard concrete gates. ``graph`` is not changed.

    ``granularity`` is "structured" (a gate for what can be cut out physically, on what reads it), "weights" (a gate for
    each element of the weights that :func:`~l0compress.graph.weights.find_weights` finds) or "both".

    >>> from l0compress.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> gated = gate(capture(model, (torch.zeros(2, 4),)))
    >>> gated(torch.zeros(3, 4)).shape
    torch.Size([3, 2])

    Raises:
        NothingToPruneError: no channel of the graph can be removed, or it has no weights to gate.
        InputError: an unknown granularity.
    """
    check_granularity(granularity)
    groups = groups_without_moves(graph) if granularity == "weights" else find_groups(graph)
    gates = HardConcrete(groups.num_moves, log_alpha=log_alpha, temperature=temperature, stretch=stretch)
    if granularity == "structured":
        return attach(groups, gates)
    weight_gates = {
        weight.name: WeightGate(
            starting_log_alpha(attribute(graph.graph_module, weight.name), log_alpha),
            temperature=temperature,
            stretch=stretch,
        )
        for weight in find_weights(graph)
    }
    if not weight_gates:
        raise NothingToPruneError(
            "no linear layer, convolution, recurrent layer, matrix product or embedding of this model reads a "
            "parameter as it is, so there are no weights to gate. Nothing was changed."
        )
    return attach(groups, gates, weight_gates)


def check_granularity(granularity: str) -> None:
    """Raises:
    InputError: there is no such granularity.
    """
    if granularity not in GRANULARITIES:
        raise InputError(
            f"granularity={granularity!r}: expected one of {', '.join(GRANULARITIES)}. Nothing was changed."
        )


def starting_log_alpha(weight: Tensor, log_alpha: float) -> Tensor:
    """Where the gates of a pretrained weight start."""
    return torch.full(weight.shape, float(log_alpha))


def attach(groups: Groups, gates: HardConcrete, weight_gates: Mapping[str, WeightGate] | None = None) -> GatedNetwork:
    """The graph of ``groups`` with the given gates, one a move, on its own copy of the weights.

    ``weight_gates`` are gates on single weights by name; tied parameters share those of any of their names.
    """
    network = network_of(groups.graph.graph_module)
    network.add_submodule(_FACTORS, ReadFactors(groups.reads, gates))
    nodes = {node.name: node for node in network.graph.nodes}
    last_input = [node for node in nodes.values() if node.op == "placeholder"][-1]
    with network.graph.inserting_after(last_input):
        factors = network.graph.call_module(_FACTORS)
    for position, read in enumerate(groups.reads):
        _multiply_(nodes[read.node], read.arg, factors, position)
    sparse = _gate_weights_(network, groups.graph, weight_gates or {})
    network.recompile()
    return GatedNetwork(groups, network, sparse)


def _gate_weights_(
    network: GraphNetwork, graph: CapturedGraph, weight_gates: Mapping[str, WeightGate]
) -> tuple[Weight, ...]:
    """Multiply each weight once, whatever reads it; returns the weights in the order of their gates' submodules."""
    found = {name: weight for weight in find_weights(graph) for name in weight.names} if weight_gates else {}
    sparse = tuple(replace(found[name], name=name) for name in weight_gates)
    for position, weight in enumerate(sparse):
        target = f"{_WEIGHT_GATE}{position}"
        network.add_submodule(target, weight_gates[weight.name])
        readers = [node for node in network.graph.nodes if node.op == "get_attr" and node.target in weight.names]
        with network.graph.inserting_after(readers[0]):
            gated = network.graph.call_module(target, (readers[0],))
        for node in readers:
            node.replace_all_uses_with(gated, delete_user_cb=lambda user, gated=gated: user is not gated)
    return sparse


def _multiply_(node: fx.Node, place: Place, factors: fx.Node, position: int) -> None:
    with node.graph.inserting_before(node):
        factor = node.graph.call_function(operator.getitem, (factors, position))
        product = node.graph.call_function(torch.ops.aten.mul.Tensor, (argument_at(node, place), factor))
    put_argument_(node, place, product)


def fold(gated: GatedNetwork, plan: KeepPlan) -> CapturedGraph:
    """The network without gates, the kept gates' values multiplied into the parameters that are read.

    A kept gate counts with its median. Where a read cannot be folded into a parameter of its own, it becomes exactly
    1, and so does every read of a channel that ``plan`` drops. Single weights that the plan's masks drop become exactly
    0. The shapes are those of ``gated``: :func:`~l0compress.shrink` comes next.
    """
    graph = gated.graph()
    folded = graph.state()
    for read in gated.groups.reads:
        if read.parameter is not None:
            factor = product_of(_extended(gated.gates.median(), plan.keep), read.moves).view(read.shape)
            folded[read.parameter] = folded[read.parameter] * factor.to(folded[read.parameter].dtype)
    for weight in gated.sparse:
        keep = plan.masks.get(weight.name, torch.ones(weight.shape, dtype=torch.bool))
        values = _opened(gated.weight_gates[weight.name].median(), keep) * keep
        product = folded[weight.name] * values.to(folded[weight.name].dtype)
        folded.update(dict.fromkeys(weight.names, product))
    return graph.with_state(folded)


def _extended(median: Tensor, keep: Tensor) -> Tensor:
    values = _opened(median, keep)
    return torch.cat([values, values.new_ones(1)])


def _opened(median: Tensor, keep: Tensor) -> Tensor:
    """The values that kept gates are folded with, 1 for the others."""
    # A kept gate whose median is 0 would fold a dead column in; its channel was kept, so it is left open instead.
    values = median.detach().cpu()
    return torch.where(keep & (values > 0), values, torch.ones_like(values))
