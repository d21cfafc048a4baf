"""Attach gates to a network: every read of a gated channel, and every gated weight, is multiplied by its gate's value.

requires: a :class:`Groups`, that is a graph, its closed removals (moves) and where channels are read.
ensures:  a trainable module with one gate per move, shared by all readers of its channels, and, where single weights
          are gated, one gate per element; with gates of 0 and 1 it computes what the masked dense model computes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from l0compress.errors import InputError, NothingToPruneError, PlanError
from l0compress.gates.defaults import GRANULARITIES, OPEN_LOG_ALPHA, TEMPERATURE, Granularity
from l0compress.gates.factors import ReadFactors
from l0compress.gates.factors import product_of as product_of
from l0compress.gates.folding import fold as fold
from l0compress.gates.hard_concrete import STRETCH, HardConcrete, Stretch
from l0compress.gates.network import FACTORS, MOVES, WEIGHT_GATE, GatedNetwork, Start, check_trainable, gate_key
from l0compress.gates.scaling import may_scale_input, scaled, scaled_input, scaled_weight
from l0compress.gates.weight_gates import WeightGate, starting_log_alpha
from l0compress.graph.capture import CapturedGraph, check_captured
from l0compress.graph.cut.matching import groups_after
from l0compress.graph.cut.plan import KeepPlan, Keeps, cut
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups, find_groups, groups_without_moves
from l0compress.graph.groups.weights import Weight, find_weights, prunable_weights
from l0compress.graph.nodes.network import GraphNetwork, Place, argument_at, attribute, network_of, put_argument_


def gate(
    graph: CapturedGraph,
    *,
    granularity: Granularity = "structured",
    log_alpha: float = OPEN_LOG_ALPHA,
    magnitude_slope: float = 0.0,
    temperature: float = TEMPERATURE,
    stretch: Stretch = STRETCH,
) -> GatedNetwork:
    """Attach hard concrete gates. ``graph`` is not changed; the gated network is in training mode.

    ``granularity`` is "structured" (gates on what can be physically removed, at its reads), "weights" (a gate
    on each element of the weights that :func:`~l0compress.graph.find_weights` finds) or "both". Gates start at
    ``log_alpha``; those of weights are shifted by ``magnitude_slope``, see
    :func:`~l0compress.gates.weight_gates.starting_log_alpha`.

    >>> from l0compress.graph.capture import capture
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> gated = gate(capture(model, (torch.zeros(2, 4),)))
    >>> gated(torch.zeros(3, 4)).shape
    torch.Size([3, 2])

    Raises:
        NothingToPruneError: no channel of the graph can be removed, or it has no weights to gate.
        InputError: unknown granularity; or ``graph`` is not a captured graph, already has gates, or holds float16.
    """
    check_granularity(granularity)
    check_gateable(graph)
    start = Start(log_alpha, magnitude_slope)
    groups = groups_without_moves(graph) if granularity == "weights" else find_groups(graph)
    gates = HardConcrete(groups.num_moves, log_alpha=log_alpha, temperature=temperature, stretch=stretch)
    if granularity == "structured":
        return attach(groups, gates, start=start).train()
    weight_gates = {
        weight.name: WeightGate(
            starting_log_alpha(attribute(graph.graph_module, weight.name), log_alpha, magnitude_slope),
            temperature=temperature,
            stretch=stretch,
        )
        for weight in prunable_weights(graph)
    }
    if not weight_gates:
        raise NothingToPruneError(
            "no linear layer, convolution, recurrent layer, matrix product or embedding of this model reads a "
            "parameter as it is, so there are no weights to gate.",
            fix="",
        )
    return attach(groups, gates, weight_gates, start=start).train()


def check_gateable(graph: CapturedGraph) -> None:
    """Check that gates can be attached to ``graph``.

    Raises:
        InputError: they cannot.
    """
    if isinstance(graph, GatedNetwork):
        raise InputError(
            "the network already has gates.",
            fix="Train it as it is; to start again from its weights, write gate(gated.graph()).",
        )
    check_captured(graph, "gate")
    state = graph.state()
    if any(FACTORS in name or WEIGHT_GATE in name for name in graph.graph_module.state_dict()):
        raise InputError(
            "this graph was captured from a network that already has gates.",
            fix="Capture the model itself; to start again from a gated network's weights, write gate(gated.graph()).",
        )
    for dtype in {tensor.dtype for tensor in state.values()}:
        check_trainable(dtype)


def check_gated(gated: object, verb: str) -> None:
    """Check that what ``verb`` is called with is a gated network.

    Raises:
        InputError: it is not; the message says what to write.
    """
    if isinstance(gated, GatedNetwork):
        return
    way = "Make one with gated = l0compress.gate(l0compress.capture(model, (example_input,)))."
    if isinstance(gated, nn.Module):
        inside = [name for name, child in gated.named_children() if isinstance(child, GatedNetwork)]
        way = f"Pass the network inside of it, .{inside[0]}." if inside else way
    raise InputError(f"{verb} takes a gated network, but this is {type(gated).__name__}.", fix=f"{way}")


def check_granularity(granularity: str) -> None:
    """Check that the granularity exists.

    Raises:
        InputError: it does not.
    """
    if granularity not in GRANULARITIES:
        raise InputError(f"granularity={granularity!r}: expected one of {', '.join(GRANULARITIES)}.", fix="")


def attach(
    groups: Groups,
    gates: HardConcrete,
    weight_gates: Mapping[str, WeightGate] | None = None,
    *,
    start: Start | None = None,
) -> GatedNetwork:
    """Attach the given gates, one per move, to a copy of the graph of ``groups`` with its own weights.

    ``weight_gates`` are gates on single weights by name; tied parameters share those of any of their names. ``start``
    says where all of them began, if they do not have values of their own.
    """
    network = network_of(groups.graph.graph_module)
    nodes = {node.name: node for node in network.graph.nodes}
    dtypes = tuple(argument_at(nodes[read.node], read.arg).meta["val"].dtype for read in groups.reads)
    network.add_submodule(FACTORS, ReadFactors(groups.reads, gates, dtypes))
    last_input = [node for node in nodes.values() if node.op == "placeholder"][-1]
    with network.graph.inserting_after(last_input):
        factors = network.graph.call_module(FACTORS)
    for position, read in enumerate(groups.reads):
        _multiply_(nodes[read.node], read.arg, factors, position)
    sparse = _gate_weights_(network, groups.graph, weight_gates or {})
    network.recompile()
    return GatedNetwork(groups, network, sparse, start)


def _gate_weights_(
    network: GraphNetwork, graph: CapturedGraph, weight_gates: Mapping[str, WeightGate]
) -> tuple[Weight, ...]:
    """Multiply each weight once, whatever reads it; return the weights in the order of their gates' submodules."""
    found = {name: weight for weight in find_weights(graph) for name in weight.names} if weight_gates else {}
    sparse = tuple(replace(found[name], name=name) for name in weight_gates)
    for position, weight in enumerate(sparse):
        target = f"{WEIGHT_GATE}{position}"
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
        if place == 1 and may_scale_input(node):
            x, weight = node.args[:2]
            node.update_arg(0, node.graph.call_function(scaled_input, (x, weight, factor)))
            product = node.graph.call_function(scaled_weight, (x, weight, factor))
        else:
            product = node.graph.call_function(scaled, (argument_at(node, place), factor))
    put_argument_(node, place, product)


@dataclass(frozen=True, eq=False)
class Compacted:
    """The result of physical removal during training.

    ``parameter_keeps`` says which indices of each dimension of each old parameter stay (None = all), so that optimizer
    state can be sliced accordingly. ``kept_moves`` is int64 ``(new num_moves,)``: the old index of each new
    move. ``gate_keeps`` is the same for :meth:`GatedNetwork.gate_parameters`.
    """

    gated: GatedNetwork
    parameter_keeps: dict[str, Keeps]
    kept_moves: Tensor

    @property
    def gate_keeps(self) -> dict[str, Keeps]:
        weights = {gate_key(name): keeps for name, keeps in self.parameter_keeps.items()}
        return {**weights, MOVES: (self.kept_moves,)}


def compact(gated: GatedNetwork, *, threshold: float = 0.01) -> Compacted:
    """Physically remove the moves that are open with a probability under ``threshold``; the others keep their gates.

    Every group keeps its two most likely moves: with only one left there is nothing to decide, and it would lose its
    gate. ``gated`` is not changed; it is returned as it is if nothing is removed.
    """
    keep = kept_by_compaction(gated, threshold=threshold)
    unchanged = Compacted(gated, {}, torch.arange(len(keep)))
    if bool(keep.all()):
        return unchanged
    compacted = _carried_out(gated, KeepPlan.from_keep(gated.groups, keep))
    # A kept move that is no longer a choice in the smaller graph would silently stay open for good.
    whole = torch.equal(compacted.kept_moves.sort().values, keep.nonzero().flatten())
    return compacted if whole else unchanged


def _closable(gated: GatedNetwork, keep: Tensor) -> Tensor:
    """The decision, closed; where more would follow than may go, as much of it as can."""
    try:
        return gated.groups.close(keep)
    except PlanError:
        order = gated.gates.log_alpha.detach().cpu().argsort(stable=True).tolist()
        return KeepPlan.without(gated.groups, [move for move in order if not keep[move]]).keep


def compact_again(gated: GatedNetwork, kept_moves: Tensor) -> Compacted:
    """Repeat a removal made by :func:`compact`, on a network in the same state.

    Args:
        kept_moves: what that removal returned.

    Raises:
        PlanError: the result differs, so the model or the program is not the same.
    """
    keep = torch.zeros(gated.groups.num_moves, dtype=torch.bool)
    if len(kept_moves) and int(kept_moves.max()) < len(keep):
        keep[kept_moves] = True
        compacted = _carried_out(gated, KeepPlan(gated.groups, keep))
        if torch.equal(compacted.kept_moves, kept_moves):
            return compacted
    raise PlanError(
        "Repeating a removal of a stored run gives a different network.",
        fix="Resume with the versions of l0compress and PyTorch that the run started with, or start it again.",
    )


def _carried_out(gated: GatedNetwork, plan: KeepPlan) -> Compacted:
    gates = gated.gates
    smaller, kept_moves = groups_after(plan, shrink(gated.graph(), plan))
    smaller_gates = HardConcrete(smaller.num_moves, temperature=gates.temperature, stretch=gates.stretch)
    with torch.no_grad():
        smaller_gates.log_alpha.copy_(gates.log_alpha.detach().cpu()[kept_moves])
    result = attach(smaller, smaller_gates, _cut_gates(gated, plan, smaller)).to(gates.log_alpha.device)
    return Compacted(result.train(gated.training), plan.parameter_keeps(), kept_moves)


def _cut_gates(gated: GatedNetwork, plan: KeepPlan, smaller: Groups) -> dict[str, WeightGate]:
    """Return the gates of the weights left in the smaller graph, cut as the weights are."""
    keeps, old = plan.parameter_keeps(), gated.weight_gates
    return {
        name: WeightGate(
            cut(old[name].log_alpha.detach(), keeps[name]).clone(),
            temperature=old[name].temperature,
            stretch=old[name].stretch,
        )
        for name in old
        if name in smaller.labelled.parameters
    }


def kept_by_compaction(gated: GatedNetwork, *, threshold: float = 0.01) -> Tensor:
    """Return the moves that :func:`compact` keeps, bool ``(num_moves,)`` and closed."""
    probability = gated.gates.probability_nonzero().detach().cpu()
    keep = probability >= threshold
    if bool(keep.all()):
        return keep
    for group in gated.groups.groups:
        members = torch.tensor(group.moves)
        # The first layer reads the model's input directly; selecting its columns at every step would cost time, not
        # save it.
        stay = len(members) if group.kind == "inputs" else min(2, len(members))
        keep[members[probability[members].topk(stay).indices]] = True
    for members, count in gated.groups.floors.sets():
        keep[members[probability[members].topk(count).indices]] = True
    return _closable(gated, keep)
