"""What every rule has to show on a network: prunable, exact, costed exactly, gateable, trainable and exportable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
import torch
from torch import Tensor, nn

from l0compress.export.onnx import export_onnx
from l0compress.export.session import OnnxSession
from l0compress.gates.attach import attach, compact, fold
from l0compress.gates.hard_concrete import HardConcrete
from l0compress.graph import CapturedGraph, Groups, KeepPlan, capture, cost, find_groups, masked, shrink
from l0compress.graph.labels.values import flattened, varying
from l0compress.verification.calls import example_calls, named_leaves
from l0compress.verification.equality import verify

SHUT, OPEN = -40.0, 40.0
DENSITIES = (0.8, 0.5, 0.0)


def graph_of(model: nn.Module, *args: Any, dynamic: Any = "batch", **kwargs: Any) -> CapturedGraph:
    """The graph of a model with randomised parameters."""
    return capture(models.randomise(model), args, kwargs, dynamic=dynamic)


def prunable_share(groups: Groups) -> float:
    """The share of parameter elements that some move removes."""
    removable = (groups.moves_of_component != groups.num_moves).any(1)
    total, free = 0, 0.0
    parameters = dict(groups.graph.graph_module.named_parameters())
    for name, value in groups.labelled.parameters.items():
        if name not in parameters:
            continue
        stuck = float(parameters[name].numel())
        for plane in value.planes:
            assert len(varying(plane)) == 1
            line = removable[torch.from_numpy(groups.components.of(flattened(plane))).long()]
            stuck *= 1 - float(line.double().mean())
        total += parameters[name].numel()
        free += parameters[name].numel() - stuck
    return free / total


def plans_of(groups: Groups) -> list[KeepPlan]:
    """Plans that thin out every group, and plans that drop moves wherever they fall."""
    plans = [KeepPlan.random(groups, density, seed) for seed, density in enumerate(DENSITIES)]
    for seed, share in enumerate((0.3, 0.7)):
        order = torch.randperm(groups.num_moves, generator=torch.Generator().manual_seed(seed)).tolist()
        plans.append(KeepPlan.without(groups, order[: round(share * len(order))]))
    return plans


def outputs(model: Any, graph: CapturedGraph) -> Mapping[str, Tensor]:
    with torch.no_grad():
        found = named_leaves(model(*graph.example_args, **graph.example_kwargs))
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def assert_exact(graph: CapturedGraph) -> Groups:
    """Shrunk equals masked at every plan, at the predicted cost; and the plans do change what is computed."""
    graph = graph.to(torch.float64)
    groups = find_groups(graph)
    dense, changed = outputs(graph.module(), graph), False
    for plan in plans_of(groups):
        small, reference = shrink(graph, plan), masked(graph, plan)
        verify(small, reference, tolerance=1e-10)
        assert cost(small) == plan.cost
        cut = outputs(reference, graph)
        changed |= any((cut[name] - dense[name]).abs().max() > 1e-3 * dense[name].abs().max() for name in dense)
    assert changed
    assert groups.cost_of(torch.ones(groups.num_moves, dtype=torch.bool)) == cost(graph)
    return groups


def assert_gateable(graph: CapturedGraph, *, compacts: bool = True) -> None:
    """Gates of 0 and 1 compute what the masked model does, also folded or compacted; and they and the weights learn."""
    graph = graph.to(torch.float64)
    groups = find_groups(graph)
    plan = KeepPlan.random(groups, 0.5, 1)
    gates = HardConcrete(groups.num_moves)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.where(plan.keep, OPEN, SHUT))
    gated = attach(groups, gates).eval()
    reference = masked(graph, plan)
    calls = example_calls(graph)
    verify(gated, reference, inputs=calls, tolerance=1e-10)
    verify(shrink(fold(gated, plan), plan), reference, inputs=calls, tolerance=1e-10)
    small = compact(gated).gated
    assert (small.groups.num_moves < groups.num_moves) == compacts
    verify(small, reference, inputs=calls, tolerance=1e-10)
    _assert_learns(attach(groups, HardConcrete(groups.num_moves, log_alpha=0.5)), graph)


def _assert_learns(gated: nn.Module, graph: CapturedGraph) -> None:
    gated.train()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(gated.parameters(), lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in gated.named_parameters()}
    found = named_leaves(gated(*graph.example_args, **graph.example_kwargs))
    losses = [value.square().mean() for value in found.values() if isinstance(value, Tensor) and value.requires_grad]
    torch.stack(losses).sum().backward()
    optimizer.step()
    after = dict(gated.named_parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in after.values())
    moved = [name for name, parameter in after.items() if not torch.equal(parameter, before[name])]
    assert any(name.endswith("log_alpha") for name in moved)
    assert len(moved) > len(before) / 2


def assert_exports(graph: CapturedGraph, folder: Path) -> None:
    """ONNX Runtime computes what the masked model does, at other batch sizes and, where it is free, another length."""
    plan = KeepPlan.random(find_groups(graph), 0.5, 1)
    small, reference = shrink(graph, plan), masked(graph, plan)
    export_onnx(small, folder / "small.onnx", reference=reference, tolerance=1e-5)
    session = OnnxSession(folder / "small.onnx", threads=1)
    verify(session, reference, inputs=example_calls(graph, (1, 4), seed=3), tolerance=1e-5)
