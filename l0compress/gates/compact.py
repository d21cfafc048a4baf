"""Compaction: what is surely closed leaves the network while it is trained, so that epochs become cheaper.

requires: a gated network in training.
ensures:  a smaller one that computes the same with the gates that are left, and what an optimizer's state has to lose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.gates.attach import GatedNetwork, attach
from l0compress.gates.hard_concrete import HardConcrete
from l0compress.gates.weight_gates import WeightGate
from l0compress.graph.groups import Groups, find_groups
from l0compress.graph.matching import match_moves
from l0compress.graph.plan import KeepPlan, Keeps, cut
from l0compress.graph.shrink import shrink


@dataclass(frozen=True, eq=False)
class Compacted:
    """What physical removal during training leaves.

    ``parameter_keeps`` says which indices of each dimension of each old parameter stay (None = all), so that an
    optimizer's state can be sliced along. ``kept_moves`` is int64 ``(new num_moves,)``: the old index of each new
    move. ``gate_keeps`` says the same of :meth:`GatedNetwork.gate_parameters`.
    """

    gated: GatedNetwork
    parameter_keeps: dict[str, Keeps]
    kept_moves: Tensor

    @property
    def gate_keeps(self) -> dict[str, Keeps]:
        return {**self.parameter_keeps, "log_alpha": (self.kept_moves,)}


def compact(gated: GatedNetwork, *, threshold: float = 0.01) -> Compacted:
    """Physically remove the moves that are open with a probability under ``threshold``; the others keep their gates.

    Every group keeps its two likeliest moves: of a single one nothing is left to decide, so it would lose its gate.
    ``gated`` is not changed; it is returned as it is where nothing is removed.
    """
    gates = gated.gates
    keep = gated.groups.close(_worth_keeping(gated, threshold))
    unchanged = Compacted(gated, {}, torch.arange(len(keep)))
    if bool(keep.all()):
        return unchanged
    plan = KeepPlan.from_keep(gated.groups, keep)
    smaller = find_groups(shrink(gated.graph(), plan))
    kept_moves = match_moves(gated.groups, plan, smaller)
    # A kept move that is no choice any more in the smaller graph would silently be open for good.
    if not torch.equal(kept_moves.sort().values, keep.nonzero().flatten()):
        return unchanged
    smaller_gates = HardConcrete(smaller.num_moves, temperature=gates.temperature, stretch=gates.stretch)
    with torch.no_grad():
        smaller_gates.log_alpha.copy_(gates.log_alpha.cpu()[kept_moves])
    result = attach(smaller, smaller_gates, _cut_gates(gated, plan, smaller)).to(gates.log_alpha.device)
    return Compacted(result.train(gated.training), plan.parameter_keeps(), kept_moves)


def _cut_gates(gated: GatedNetwork, plan: KeepPlan, smaller: Groups) -> dict[str, WeightGate]:
    """The gates of the weights that are left in the smaller graph, cut as the weights are."""
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
