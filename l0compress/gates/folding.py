"""Folding: turn a gated network into a graph without gates, with their values multiplied into the weights that read.

requires: a plan of the network's own groups.
ensures:  a dense-shaped graph that computes what the network computes with the plan's gates at their medians and the
          others shut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l0compress.gates.factors import product_of
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.nodes.checksum import weights_checksum

if TYPE_CHECKING:
    from l0compress.gates.network import GatedNetwork


def fold(gated: GatedNetwork, plan: KeepPlan) -> CapturedGraph:
    """Return the network without gates, with the kept gates' values multiplied into the parameters that are read.

    A kept gate contributes its median. Where a read cannot be folded into a parameter of its own, the gate becomes
    exactly 1, and so does every read of a channel that ``plan`` drops. Single weights that the plan's masks drop become
    exactly 0. The shapes are those of ``gated``: call :func:`~l0compress.shrink` next, or ``gated.shrink(plan)`` for
    both.
    """
    graph = gated.graph()
    return graph.with_state({**graph.state(), **folded_weights(gated, plan, graph.state())})


def folded_weights(gated: GatedNetwork, plan: KeepPlan, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return those weights in ``state`` that gates are multiplied into, with the gates folded in."""
    folded: dict[str, Tensor] = {}
    for read in gated.groups.reads:
        if read.parameter is not None:
            weight = folded.get(read.parameter, state[read.parameter])
            factor = product_of(_extended(gated.gates.median(), plan.keep), read.moves).view(read.shape)
            folded[read.parameter] = weight * factor.to(weight.dtype)
    for weight in gated.sparse:
        keep = plan.masks.get(weight.name, torch.ones(weight.shape, dtype=torch.bool))
        values = _opened(gated.weight_gates[weight.name].median(), keep) * keep
        whole = folded.get(weight.name, state[weight.name])
        folded.update(dict.fromkeys(weight.names, whole * values.to(whole.dtype)))
    return folded


def unfit_weights(gated: GatedNetwork, plan: KeepPlan) -> dict[str, str]:
    """Return the weights on which ``plan`` must not be carried out, by checksum, with a description of each.

    What :func:`fold` returns is never among them, even if training has changed nothing.
    """
    now = gated.graph().state()
    wrong = {
        weights_checksum(gated.groups.graph.state()): "the weights from before training",
        weights_checksum(now): "trained weights without their gate values",
    }
    wrong.pop(weights_checksum({**now, **folded_weights(gated, plan, now)}), None)
    return wrong


def _extended(median: Tensor, keep: Tensor) -> Tensor:
    values = _opened(median, keep)
    return torch.cat([values, values.new_ones(1)])


def _opened(median: Tensor, keep: Tensor) -> Tensor:
    """Return the values that kept gates are folded with, 1 for the others."""
    # Folding a kept gate with median 0 would make a dead column; its channel was kept, so it is left open instead.
    values = median.detach().cpu()
    return torch.where(keep & (values > 0), values, torch.ones_like(values))
