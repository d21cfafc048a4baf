"""When what is surely shut leaves a network that is being trained: as soon as the removal pays for itself.

Decided by steps and multiply-accumulates, never by seconds, so that a run that goes on from a snapshot decides alike.
"""

from __future__ import annotations

import torch

from l0compress.gates.attach import GatedNetwork, kept_by_compaction
from l0compress.graph.capture import CapturedGraph

# Labelling and cutting take 1 to 3 ms a node on one core, in which time it computes some 10^8 multiply-accumulates.
MACS_PER_NODE = 10**8
# One forward and two backward products.
PRODUCTS = 3


def removal_macs(graph: CapturedGraph) -> int:
    """What a removal costs, in multiply-accumulates that would take as long."""
    return MACS_PER_NODE * sum(1 for _ in graph.nodes())


def saved_macs(gated: GatedNetwork, *, threshold: float, samples: int) -> int:
    """What removing every move under ``threshold`` saves in training on ``samples`` more, in multiply-accumulates."""
    groups, keep = gated.groups, kept_by_compaction(gated, threshold=threshold)
    if bool(keep.all()):
        return 0
    before, after = (groups.cost_of(moves).macs for moves in (torch.ones_like(keep), keep))
    return PRODUCTS * samples * (before - after)
