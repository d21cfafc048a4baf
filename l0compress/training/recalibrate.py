"""BatchNorm statistics measured anew: removal changes the activations, and stored statistics do not follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from l0compress.data import Batch
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import op_name
from l0compress.training.problem import Problem

_TRAINING, _MOMENTUM = 5, 6
_BATCHES = 100


def batches_at(problem: Problem, step: int) -> Iterator[Batch]:
    """Some training batches, of the epoch that ``step`` of the run is in."""
    return islice(problem.batches(problem.epoch(step // problem.steps_per_epoch)), _BATCHES)


def recalibrate(graph: CapturedGraph, batches: Iterable[Batch], *, device: torch.device | str = "cpu") -> CapturedGraph:
    """The same graph with running means and variances averaged over ``batches``; other weights stay.

    Layers that normalise by stored statistics see batch statistics while measuring, as in training; dropout stays off.
    A graph without such layers is returned as it is, and then no batch is read. Source: cumulative averages as in Wu
    and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (PreciseBN).
    """
    statistics = _Statistics(graph, device)
    if statistics.names:
        for batch in batches:
            statistics.add_(batch.to(device))
    return statistics.applied()


class _Statistics:
    """What the batch norms of a graph have seen."""

    def __init__(self, graph: CapturedGraph, device: torch.device | str) -> None:
        self._graph, self._network = graph, graph.module().to(device)
        self.names: list[str] = []
        self._totals: dict[str, Tensor] = {}
        self._count = 0
        for node in self._network.graph.nodes:
            if op_name(node) == "batch_norm" and node.args[_TRAINING] is False:
                node.update_arg(_TRAINING, True)
                # With momentum 1 the buffers hold the last batch's statistics, to be averaged here.
                node.update_arg(_MOMENTUM, 1.0)
                self.names += [str(argument.target) for argument in node.args[3:5]]
        if self.names:
            self._network.recompile()

    @torch.no_grad()
    def add_(self, batch: Batch) -> None:
        batch.run(self._network)
        buffers = dict(self._network.named_buffers())
        self._totals = {name: self._totals.get(name, 0) + buffers[name].cpu().double() for name in self.names}
        self._count += 1

    def applied(self) -> CapturedGraph:
        """The graph with the means of what was seen; as it is, if that is nothing."""
        if self._count == 0:
            return self._graph
        means = {name: total / self._count for name, total in self._totals.items()}
        return self._graph.with_state({**self._graph.state(), **means})
