"""Shrunk equals masked dense: in float64, in float32 and under ONNX Runtime, at three densities, for every network."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import equality
import models
import pytest
import torch
from resnet20 import WEIGHTS

from l0compress.export.onnx import export_onnx
from l0compress.export.session import OnnxSession
from l0compress.graph import CapturedGraph, KeepPlan, capture, cost, find_groups, masked, shrink
from l0compress.verification.calls import BATCH_SIZES, example_calls, named_leaves
from l0compress.verification.equality import verify

pytestmark = pytest.mark.slow

DENSITIES = (0.7, 0.4, 0.15)


@cache
def captured(name: str) -> CapturedGraph:
    model, args, kwargs = models.build(name)
    return capture(model, args, kwargs)


@pytest.mark.parametrize("name", models.ZOO)
def test_shrunk_equals_masked_in_float64_at_the_cost_that_was_predicted(name: str) -> None:
    graph = captured(name).to(torch.float64)
    groups = find_groups(graph)
    assert groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)) == cost(graph)
    for seed, density in enumerate(DENSITIES):
        plan = KeepPlan.random(groups, density, seed)
        small = shrink(graph, plan)
        found = verify(small, masked(graph, plan), tolerance=1e-10)
        assert not found.zero_outputs
        assert cost(small) == plan.cost


@pytest.mark.parametrize("name", models.ZOO)
def test_the_plans_change_what_the_model_computes(name: str) -> None:
    """Otherwise the equality above would say nothing."""
    graph = captured(name)
    dense = graph.module()(*graph.example_args, **graph.example_kwargs)
    plan = KeepPlan.random(find_groups(graph), 0.7)
    small = masked(graph, plan)(*graph.example_args, **graph.example_kwargs)
    for key, reference in named_leaves(dense).items():
        assert (named_leaves(small)[key] - reference).abs().max() > 1e-2 * reference.abs().max()


@pytest.mark.parametrize("name", models.ZOO)
def test_onnx_runtime_equals_masked_in_float32(name: str, tmp_path: Path) -> None:
    graph = captured(name)
    groups = find_groups(graph)
    for seed, density in enumerate(DENSITIES):
        plan = KeepPlan.random(groups, density, seed)
        small, reference = shrink(graph, plan), masked(graph, plan)
        verify(small, reference, tolerance=1e-5)
        export_onnx(small, tmp_path / "small.onnx", reference=reference, tolerance=1e-5)
        session = OnnxSession(tmp_path / "small.onnx", threads=1)
        verify(session, reference, inputs=example_calls(graph, BATCH_SIZES), tolerance=1e-5)


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS} does not exist; set L0COMPRESS_DATA")
def test_a_pretrained_resnet20_is_equal_too() -> None:
    """Real weights have channels that are nearly or wholly dead; random ones do not."""
    graph = capture(*equality.pretrained_resnet20()).to(torch.float64)
    groups = find_groups(graph)
    for seed, density in enumerate(DENSITIES):
        plan = KeepPlan.random(groups, density, seed)
        verify(shrink(graph, plan), masked(graph, plan), tolerance=1e-10)
