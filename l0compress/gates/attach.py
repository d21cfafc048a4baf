"""Gates in a network: every read of a gated channel is multiplied by its gates' value.

requires: a :class:`Groups`, that is a graph, its closed removals (moves) and where channels are read.
ensures:  a trainable module with one gate a move, shared by all readers of its channels; with gates of 0 and 1 it
          computes what the masked dense model computes.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from l0compress.errors import PlanError
from l0compress.gates.hard_concrete import OPEN_LOG_ALPHA, STRETCH, TEMPERATURE, HardConcrete, Stretch
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups, find_groups
from l0compress.graph.matching import match_moves
from l0compress.graph.network import GraphNetwork, Place, argument_at, network_of, put_argument_
from l0compress.graph.plan import KeepPlan
from l0compress.graph.reads import Read
from l0compress.graph.shrink import shrink

_FACTORS = "l0_read_factors"


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
    """A captured network whose channels carry gates; made by :func:`gate`.

    ``forward`` takes and returns what the user's model does. In training mode the gates are sampled, one draw a call;
    in evaluation mode they are at their median.

    Attributes:
        groups: the moves that the gates stand for, in order.
        network: the rewritten graph.
    """

    def __init__(self, groups: Groups, network: GraphNetwork) -> None:
        super().__init__()
        self.groups = groups
        self.network = network

    @property
    def gates(self) -> HardConcrete:
        """The gates, one a move: ``gates.log_alpha`` is what is learned."""
        return self.read_factors.gates

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
            if not name.startswith(f"{_FACTORS}.")
        }

    def graph(self) -> CapturedGraph:
        """The network without gates, with the weights as they are now (copied)."""
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        return self.groups.graph.with_state(state)


def gate(
    graph: CapturedGraph,
    *,
    log_alpha: float = OPEN_LOG_ALPHA,
    temperature: float = TEMPERATURE,
    stretch: Stretch = STRETCH,
) -> GatedNetwork:
    """Attach hard concrete gates to what reads a channel. ``graph`` is not changed.

    >>> from l0compress.graph.capture import capture
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> gated = gate(capture(model, (torch.zeros(2, 4),)))
    >>> gated(torch.zeros(3, 4)).shape
    torch.Size([3, 2])

    Raises:
        NothingToPruneError: no channel of the graph can be removed.
    """
    groups = find_groups(graph)
    gates = HardConcrete(groups.num_moves, log_alpha=log_alpha, temperature=temperature, stretch=stretch)
    return attach(groups, gates)


def attach(groups: Groups, gates: HardConcrete) -> GatedNetwork:
    """The graph of ``groups`` with the given gates, one a move, on its own copy of the weights."""
    network = network_of(groups.graph.graph_module)
    network.add_submodule(_FACTORS, ReadFactors(groups.reads, gates))
    nodes = {node.name: node for node in network.graph.nodes}
    last_input = [node for node in nodes.values() if node.op == "placeholder"][-1]
    with network.graph.inserting_after(last_input):
        factors = network.graph.call_module(_FACTORS)
    for position, read in enumerate(groups.reads):
        _multiply_(nodes[read.node], read.arg, factors, position)
    network.recompile()
    return GatedNetwork(groups, network)


def _multiply_(node: fx.Node, place: Place, factors: fx.Node, position: int) -> None:
    with node.graph.inserting_before(node):
        factor = node.graph.call_function(operator.getitem, (factors, position))
        product = node.graph.call_function(torch.ops.aten.mul.Tensor, (argument_at(node, place), factor))
    put_argument_(node, place, product)


def fold(gated: GatedNetwork, plan: KeepPlan) -> CapturedGraph:
    """The network without gates, the kept gates' values multiplied into the parameters that are read.

    A kept gate counts with its median. Where a read cannot be folded into a parameter of its own, it becomes exactly
    1, and so does every read of a channel that ``plan`` drops. The shapes are those of ``gated``:
    :func:`~l0compress.shrink` comes next.
    """
    graph = gated.graph()
    state = graph.state()
    kept = plan.keep
    # A kept gate whose median is 0 would fold a dead column in; its channel was kept, so it is left open instead.
    values = gated.gates.median().detach().cpu()
    values = torch.where(kept & (values > 0), values, torch.ones_like(values))
    extended = torch.cat([values, values.new_ones(1)])
    folded = dict(state)
    for read in gated.groups.reads:
        if read.parameter is not None:
            factor = product_of(extended, read.moves).view(read.shape)
            folded[read.parameter] = folded[read.parameter] * factor.to(folded[read.parameter].dtype)
    return graph.with_state(folded)


@dataclass(frozen=True, eq=False)
class Compacted:
    """What physical removal during training leaves.

    ``parameter_keeps`` says which indices of each dimension of each old parameter stay (None = all), so that an
    optimizer's state can be sliced along. ``kept_moves`` is int64 ``(new num_moves,)``: the old index of each new
    move.
    """

    gated: GatedNetwork
    parameter_keeps: dict[str, tuple[Tensor | None, ...]]
    kept_moves: Tensor


def compact(gated: GatedNetwork, *, threshold: float = 0.01) -> Compacted:
    """Physically remove the moves that are open with a probability under ``threshold``; the others keep their gates.

    Every group keeps its two likeliest moves: of a single one nothing is left to decide, so it would lose its gate.
    ``gated`` is not changed; it is returned as it is where nothing is removed.
    """
    keep = gated.groups.close(_worth_keeping(gated, threshold))
    unchanged = Compacted(gated, {}, torch.arange(len(keep)))
    if bool(keep.all()):
        return unchanged
    compacted = _carried_out(gated, KeepPlan.from_keep(gated.groups, keep))
    # A kept move that is no choice any more in the smaller graph would silently be open for good.
    whole = torch.equal(compacted.kept_moves.sort().values, keep.nonzero().flatten())
    return compacted if whole else unchanged


def compact_again(gated: GatedNetwork, kept_moves: Tensor) -> Compacted:
    """The removal that :func:`compact` did once, on a network that stands where that one stood.

    Args:
        kept_moves: what that removal returned.

    Raises:
        PlanError: it leads elsewhere, so model or program are not what they were.
    """
    keep = torch.zeros(gated.groups.num_moves, dtype=torch.bool)
    if len(kept_moves) and int(kept_moves.max()) < len(keep):
        keep[kept_moves] = True
        compacted = _carried_out(gated, KeepPlan(gated.groups, keep))
        if torch.equal(compacted.kept_moves, kept_moves):
            return compacted
    raise PlanError(
        "A removal of a stored run leads to another network than it did then. Nothing was changed. Resume with the "
        "versions of l0compress and PyTorch that the run began with, or start it again."
    )


def _carried_out(gated: GatedNetwork, plan: KeepPlan) -> Compacted:
    gates = gated.gates
    smaller = find_groups(shrink(gated.graph(), plan))
    kept_moves = match_moves(gated.groups, plan, smaller)
    smaller_gates = HardConcrete(smaller.num_moves, temperature=gates.temperature, stretch=gates.stretch)
    with torch.no_grad():
        smaller_gates.log_alpha.copy_(gates.log_alpha.detach().cpu()[kept_moves])
    result = attach(smaller, smaller_gates).to(gates.log_alpha.device)
    return Compacted(result.train(gated.training), plan.parameter_keeps(), kept_moves)


def _worth_keeping(gated: GatedNetwork, threshold: float) -> Tensor:
    probability = gated.gates.probability_nonzero().detach().cpu()
    keep = probability >= threshold
    for group in gated.groups.groups:
        members = torch.tensor(group.moves)
        # The first layer reads the model's input as it is; choosing among its columns at every step would cost, not
        # save.
        stay = len(members) if group.kind == "inputs" else min(2, len(members))
        keep[members[probability[members].topk(stay).indices]] = True
    return keep
