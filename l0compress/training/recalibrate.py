"""BatchNorm statistics measured anew: removal changes the activations, and stored statistics do not follow."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from l0compress.data import Batch
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import op_name

_TRAINING, _MOMENTUM = 5, 6


def recalibrate(graph: CapturedGraph, batches: Iterable[Batch], *, device: torch.device | str = "cpu") -> CapturedGraph:
    """The same graph with running means and variances averaged over ``batches``; other weights stay.

    Layers that normalise by stored statistics see batch statistics while measuring, as in training; dropout stays off.
    A graph without such layers is returned as it is. Source: cumulative averages as in Wu and Johnson, "Rethinking
    'Batch' in BatchNorm", 2021, section 3 (PreciseBN).
    """
    network = graph.module().to(device)
    names: list[str] = []
    for node in network.graph.nodes:
        if op_name(node) == "batch_norm" and node.args[_TRAINING] is False:
            node.update_arg(_TRAINING, True)
            # With momentum 1 the buffers hold the last batch's statistics, to be averaged here.
            node.update_arg(_MOMENTUM, 1.0)
            names += [str(argument.target) for argument in node.args[3:5]]
    if not names:
        return graph
    network.recompile()
    totals: dict[str, Tensor] = {}
    count = 0
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            batch.run(network)
            buffers = dict(network.named_buffers())
            totals = {name: totals.get(name, 0) + buffers[name].cpu().double() for name in names}
            count += 1
    if count == 0:
        return graph
    means = {name: total / count for name, total in totals.items()}
    return graph.with_state({**graph.state(), **means})
