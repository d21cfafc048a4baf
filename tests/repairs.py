"""Networks cut in half, and how far from the dense ones they are before and after repair."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from l0compress.data import Batch
from l0compress.graph import CapturedGraph, KeepPlan, capture, find_groups, shrink
from l0compress.training.repair import Repaired

Draw = Callable[[int], Tensor]
Cut = tuple[CapturedGraph, KeepPlan, CapturedGraph]


def images(n: int) -> Tensor:
    return torch.randn(n, 4, 9, 9)


def batches_of(draw: Draw, count: int = 8, size: int = 16) -> list[Batch]:
    return [Batch((draw(size),), {}) for _ in range(count)]


def cut_half(net: nn.Module, draw: Draw, density: float = 0.5) -> Cut:
    torch.manual_seed(0)
    graph = capture(net.eval(), (draw(2),))
    plan = KeepPlan.random(find_groups(graph), density, seed=1)
    return graph, plan, shrink(graph, plan)


def outputs(graph: CapturedGraph, x: Tensor) -> Tensor:
    with torch.no_grad():
        return graph.module()(x)


def errors(graph: CapturedGraph, small: CapturedGraph, repaired: Repaired, x: Tensor) -> tuple[float, float]:
    """The mean squared errors of the outputs before and after, over the mean square of what they should be."""
    wanted = outputs(graph, x)
    return tuple(
        float((outputs(g, x) - wanted).square().mean() / wanted.square().mean()) for g in (small, repaired.graph)
    )


def layers(repaired: Repaired) -> dict[str, bool]:
    return {layer.name: layer.repaired for layer in repaired.layers}
