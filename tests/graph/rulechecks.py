"""What every rule must pass: shrunk equals masked, costs what was predicted, and the same in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import torch
from networks import Net, changes, scattered, table, worst_error_of
from torch import Tensor

from l0compress.export.onnx import export_onnx
from l0compress.gates.attach import gate
from l0compress.graph import CapturedGraph, Groups, KeepPlan, capture, cost, find_groups, masked, shrink


def plans_of(groups: Groups) -> list[KeepPlan]:
    plans = [KeepPlan.random(groups, density, seed) for seed, density in enumerate((0.8, 0.5, 0.3, 0.0))]
    return plans + [scattered(groups, share, seed) for seed, share in enumerate((0.1, 0.4, 0.7, 1.0))]


def assert_exact(graph: CapturedGraph, expected: dict[str, int]) -> None:
    """The groups are the expected ones, and every plan leaves a graph that equals the masked one at the cost foretold.

    Args:
        graph: a graph in float64.
        expected: how many moves each group has, by ``"<name> <kind>"``.
    """
    groups = find_groups(graph)
    assert table(groups) == expected, table(groups)
    assert groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)) == cost(graph)
    plans = plans_of(groups)
    for plan in plans:
        shrunk = shrink(graph, plan)
        assert worst_error_of(shrunk, graph, plan) < 1e-10, plan.kept()
        assert cost(shrunk) == plan.cost
    assert any(changes(graph, plan) for plan in plans)
    assert_gates_mask(graph)


def assert_gates_mask(graph: CapturedGraph) -> None:
    """With gates of 0 and 1 the gated network is the masked one."""
    gated = gate(graph).to(torch.float64)
    plan = KeepPlan.random(gated.groups, 0.5, 3)
    with torch.no_grad():
        gated.gates.log_alpha.copy_(torch.where(plan.keep, 30.0, -30.0))
        found, expected = gated.eval()(*graph.example_args), masked(graph, plan)(*graph.example_args)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def check(
    function: Callable[..., Any], x: Tensor, expected: dict[str, int], *, onnx: Path | None = None, **layers: Any
) -> CapturedGraph:
    """Check a network in float64; with ``onnx``, a folder, in ONNX Runtime too."""
    single = capture(models.randomise(Net(function, **layers)), (x,))
    assert_exact(single.to(torch.float64), expected)
    if onnx is not None:
        assert_same_in_onnx(single, onnx)
    return single


def assert_same_in_onnx(single: CapturedGraph, folder: Path) -> None:
    """What a plan leaves computes the same in ONNX Runtime, at several batch sizes."""
    plan = KeepPlan.random(find_groups(single), 0.5, 1)
    export_onnx(shrink(single, plan), folder / "small.onnx", reference=masked(single, plan))
