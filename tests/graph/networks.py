"""Networks of a few lines each, written as functions of named layers, and what the graph layer makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import torch
from torch import Tensor, nn

from l0compress.graph import CapturedGraph, Groups, KeepPlan, capture, find_groups, masked, shrink


class Net(nn.Module):
    """``forward(x)`` is ``function(self, x)``; layers and parameters are given by name."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(width: int = 12, length: int = 5) -> Tensor:
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(1))


def vector(width: int = 6) -> Tensor:
    return torch.randn(2, width, generator=torch.Generator().manual_seed(1))


def randomised(function: Callable[..., Any], **layers: Any) -> nn.Module:
    """A network with parameters that make every channel matter."""
    return models.randomise(Net(function, **layers))


def captured(function: Callable[..., Any], x: Tensor, **layers: Any) -> CapturedGraph:
    """The graph of a randomised network in float64."""
    return capture(randomised(function, **layers), (x,)).to(torch.float64)


def grouped(function: Callable[..., Any], x: Tensor, **layers: Any) -> Groups:
    return find_groups(captured(function, x, **layers))


def table(groups: Groups) -> dict[str, int]:
    """How many moves each group has."""
    return {f"{group.name} {group.kind}": len(group.moves) for group in groups.groups}


def reasons(groups: Groups, where: str) -> list[tuple[int, str, str]]:
    return [(place.dim, place.op, place.reason) for place in groups.frozen if place.where == where]


def worst_error(graph: CapturedGraph, plan: KeepPlan) -> float:
    """The largest relative difference between the shrunk and the masked model, over several batch sizes."""
    return worst_error_of(shrink(graph, plan), graph, plan)


def worst_error_of(shrunk: CapturedGraph, graph: CapturedGraph, plan: KeepPlan) -> float:
    """The same, of a graph that has been shrunk already."""
    small, dense = shrunk.module(), masked(graph, plan)
    (x,), worst = graph.example_args, 0.0
    for batch in (x, x[:1], torch.cat([x, x.flip(0), x[:1]])) if graph.dynamic_shapes else (x,):
        with torch.no_grad():
            found, expected = small(batch), dense(batch)
        assert found.shape == expected.shape
        assert bool(found.isfinite().all()) and bool(expected.isfinite().all())  # max() would pass over NaN
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def scattered(groups: Groups, share: float, seed: int) -> KeepPlan:
    """Drop a share of all moves, wherever they fall, as far as the graph can lose them: no group has its own floor."""
    order = torch.randperm(groups.num_moves, generator=torch.Generator().manual_seed(seed)).tolist()
    return KeepPlan.without(groups, order[: round(share * len(order))])


def changes(graph: CapturedGraph, plan: KeepPlan) -> bool:
    """Whether the plan changes what the model computes; if not, equality would say nothing."""
    with torch.no_grad():
        dense, cut = graph.module()(*graph.example_args), masked(graph, plan)(*graph.example_args)
    return bool((dense - cut).abs().max() > 1e-3 * dense.abs().max())
