"""What own loops and runs do on a device that is not the CPU; ``test_devices.py`` runs this in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clouds import QUICK, blobs, trained_mlp
from conftest import printed_json, run_cli, save_pt2
from device_networks import NETWORKS, build
from safetensors.torch import load_file
from simulated_device import DEVICE, NAME, without_float64
from test_resume import FAST, Shelf, outcome
from torch import Tensor

import l0compress as l0
from l0compress.data import Data
from l0compress.errors import InputError
from l0compress.gates.attach import compact, fold, gate
from l0compress.gates.network import GatedNetwork
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.nodes.placement import named_devices
from l0compress.measure.bench import bench
from l0compress.training.budget import Budget
from l0compress.training.finetune import finetune
from l0compress.training.harden import harden
from l0compress.training.recalibrate import recalibrate
from l0compress.training.sparsity import keep_zeros_
from l0compress.training.state_dicts import Stateful
from l0compress.verification.calls import Call, named_leaves
from l0compress.verification.equality import verify

SHARE = 0.55


@dataclass(frozen=True)
class Trained:
    """What a loop of one's own comes to."""

    gated: GatedNetwork
    losses: list[float]
    plan: KeepPlan
    small: CapturedGraph
    folded: CapturedGraph


def own_loop(graph: CapturedGraph, device: str, granularity: Any = "structured", steps: int = 3) -> Trained:
    """A few steps on a device with a removal in between, then a decision and what it leaves."""
    torch.manual_seed(0)
    gated = gate(graph, granularity=granularity).to(device).train()
    call = Call(graph.example_args, graph.example_kwargs).to(device)
    budget = Budget(gated, {"params": SHARE})
    with torch.no_grad():  # of every group some gates are all but closed, so that there is something to remove
        gated.gates.log_alpha[::5] = -8.0
    losses = []
    for _ in range(2):
        optimizer = torch.optim.AdamW(gated.param_groups(lr=0.01), fused=True)
        for _ in range(steps):
            loss = first(gated(*call.args, **call.kwargs)).square().mean() + budget.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            budget.step()
            losses.append(float(loss.detach()))
        compacted = compact(gated)
        gated = compacted.gated
        budget.follow_(gated, compacted.kept_moves)
    plan = harden(gated, budget)
    folded = fold(gated, plan)
    return Trained(gated, losses, plan, shrink(folded, plan), folded)


@cache
def captured(name: str) -> CapturedGraph:
    return capture(*build(name))


def first(outputs: Any) -> Tensor:
    return next(iter(named_leaves(outputs).values()))


def devices(graph: CapturedGraph) -> set[str]:
    tensors = [*graph.state().values(), *graph.example_args, *graph.example_kwargs.values()]
    return {tensor.device.type for tensor in tensors}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loop_comes_to_what_it_comes_to_on_the_cpu(name: str) -> None:
    graph = captured(name)
    there, here = own_loop(graph, NAME), own_loop(graph, "cpu")

    assert there.losses == pytest.approx(here.losses, rel=1e-4)
    assert {p.device for p in there.gated.parameters()} == {DEVICE}
    assert there.plan.kept() == here.plan.kept()
    assert not bool(there.plan.keep.all())
    assert there.plan.groups.num_moves < gate(graph).groups.num_moves
    assert devices(there.folded) == devices(there.small) == {"cpu"}
    verify(there.small, replace(there.folded, graph_module=masked(there.folded, there.plan)))


@pytest.mark.parametrize("granularity", ["weights", "both"])
def test_gates_on_single_weights(granularity: str) -> None:
    graph = captured("MLP")
    there, here = own_loop(graph, NAME, granularity), own_loop(graph, "cpu", granularity)

    assert there.plan.masks
    # Their noise is drawn in another way than on a CPU, so that losses differ; the cost at the start does not.
    costs = [gate(graph, granularity=granularity).to(device).expected_cost("params") for device in (NAME, "cpu")]
    assert float(costs[0].detach()) == pytest.approx(float(costs[1].detach()), rel=1e-6)
    verify(there.small, replace(there.folded, graph_module=masked(there.folded, there.plan)))
    assert l0.nonzero_cost(there.small).params <= SHARE * l0.cost(graph).params
    assert l0.nonzero_cost(here.small).params <= SHARE * l0.cost(graph).params


@pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
def test_the_expected_cost_and_its_slope(unit: str) -> None:
    graph = captured("grouped and depthwise convolutions")
    gated, moved = gate(graph), gate(graph).to(NAME)
    costs = [network.expected_cost(unit) for network in (gated, moved)]
    for cost in costs:
        cost.backward()

    assert costs[1].device == DEVICE
    assert float(costs[1].detach()) == float(costs[0].detach())
    torch.testing.assert_close(moved.gates.log_alpha.grad.cpu(), gated.gates.log_alpha.grad)


@pytest.mark.parametrize("granularity", ["structured", "weights"])
def test_a_run_on_a_device(granularity: Any) -> None:
    split = blobs()
    graph = capture(trained_mlp(split), (split.inputs[0][:2],))
    settings = replace(QUICK, epochs=3, device=NAME, granularity=granularity)
    result = finetune(graph, Data(split, split), {"params": 0.5}, settings=settings)

    assert devices(result.small) == devices(result.folded) == devices(result.last) == {"cpu"}
    verify(result.small, replace(result.folded, graph_module=masked(result.folded, result.plan)))
    assert result.best_evaluation.metric > 0.7  # a third is chance


def test_a_run_goes_on_bit_for_bit() -> None:
    split = blobs(64)
    graph = capture(trained_mlp(split), (split.inputs[0][:2],))
    settings = replace(QUICK, epochs=4, batch_size=16, device=NAME, gates=FAST)
    shelf = Looking()
    whole = finetune(graph, Data(split, split), {"params": 0.5}, settings=settings, checkpoints=shelf)
    assert shelf.devices == {"cpu"}
    for position in range(2, len(shelf.kept), 4):
        start = shelf.read(position)
        resumed = finetune(
            graph, Data(split, split), {"params": 0.5}, settings=settings, checkpoints=Shelf(start=start)
        )
        assert outcome(resumed) == outcome(whole)
        for name, tensor in whole.last.state().items():
            assert torch.equal(resumed.last.state()[name], tensor)


class Looking(Shelf):
    """Remembers where the tensors of states were."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        self.devices.update(value.device.type for value in state.state_dict().values() if isinstance(value, Tensor))
        super().save_if_due_(state, must=must)


def test_a_plan_of_masks_on_the_device_is_on_the_cpu() -> None:
    graph = captured("MLP")
    groups = l0.find_groups(graph)
    keep = torch.ones(groups.num_moves, dtype=torch.bool)
    keep[0] = False
    mask = torch.rand(graph.state()["0.weight"].shape) > 0.5
    plan = KeepPlan.from_keep(groups, keep.to(NAME)).with_masks({"0.weight": mask.to(NAME)})
    assert {tensor.device.type for tensor in plan.tensors().values()} == {"cpu"}
    verify(shrink(graph, plan), replace(graph, graph_module=masked(graph, plan)))


def test_statistics_are_measured_on_the_device() -> None:
    graph = captured("convolutions with BatchNorm")
    split = l0.Split((torch.randn(32, 3, 8, 8),))
    measured = [recalibrate(graph, split.batches(8), device=device) for device in (NAME, "cpu")]
    for name, tensor in measured[1].state().items():
        torch.testing.assert_close(measured[0].state()[name], tensor)


def test_zeros_stay_where_they_are() -> None:
    layer = keep_zeros_(torch.nn.Linear(2, 1).to(NAME), {"weight": torch.tensor([[True, False]])})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    layer(torch.ones(1, 2).to(NAME)).sum().backward()
    optimizer.step()
    assert float(layer.weight.detach().cpu()[0, 1]) == 0


def test_a_network_on_a_device_is_timed_beside_one_that_is_not() -> None:
    graph = captured("MLP")
    there = graph.module().to(NAME)
    report = bench({"there": there, "here": graph}, graph, batch_sizes=(1,), rounds=3, threads=1)
    assert {timing.name for timing in report.timings} == {"there", "here"}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_that_is_on_the_device_is_captured_and_cut(name: str) -> None:
    model, args, kwargs = build(name)
    expected = captured(name)
    call = Call(args, kwargs).to(NAME)
    graph = capture(model.to(NAME), call.args, call.kwargs)

    assert {parameter.device for parameter in model.parameters()} == {DEVICE}
    assert devices(graph) == {"cpu"}
    assert not any(device.type == NAME for node in graph.nodes() for device in named_devices(node))
    assert {value.device.type for node in graph.nodes() if isinstance(value := node.meta.get("val"), Tensor)} == {"cpu"}
    verify(graph, expected)
    groups = l0.find_groups(graph)
    assert groups.num_moves == l0.find_groups(expected).num_moves
    plan = KeepPlan.random(groups, seed=1)
    dense, small = masked(graph, plan).to(NAME), shrink(graph, plan).module().to(NAME)
    verify(small, dense, inputs=[call])
    verify(copy.deepcopy(small).cpu(), dense, inputs=[call])


def test_a_model_and_data_on_the_device_are_compressed_there() -> None:
    split = blobs(96)
    model = trained_mlp(split).to(NAME)
    there = l0.Split((split.inputs[0].to(NAME),), split.targets.to(NAME))
    quick = replace(QUICK, epochs=2, device=NAME)
    result = l0.compress(model, Data(there, there, there), target={"params": 0.5}, settings=quick)

    assert {parameter.device for parameter in model.parameters()} == {DEVICE}
    assert devices(result.small) == devices(result.masked) == devices(result.dense) == {"cpu"}
    assert result.test is not None
    assert result.reached <= result.limit


def test_every_command_works_for_a_run_that_was_made_on_the_device(tmp_path: Path) -> None:
    split, model, run = blobs(96), tmp_path / "model.pt2", tmp_path / "run"
    save_pt2(trained_mlp(split), (split.inputs[0][:2],), model)
    data = tmp_path / "clouds.npz"
    np.savez(data, x=split.inputs[0].numpy(), y=split.targets.numpy())
    asked = ["finetune", model, "--data", data, "--target", "params=0.5", "--epochs", "2", "--device", NAME, "-o", run]

    assert run_cli("inspect", model).exit_code == 0
    assert printed_json(*asked)["target"]["reached"] <= printed_json("finetune", "--resume", run)["target"]["limit"]
    for path in run.glob("*.safetensors"):
        assert {tensor.device.type for tensor in load_file(path).values()} == {"cpu"}
    for format, suffix in (("onnx", ".onnx"), ("pt2", ".pt2")):
        assert run_cli("export", run, "--format", format).exit_code == 0
        artifact = run / f"model{suffix}"
        assert printed_json("verify", artifact, "--against", run)["equal"]
    assert NAME.encode() not in (run / "model.pt2").read_bytes()
    assert run_cli("bench", run / "model.pt2", "--batch", "1", "--threads", "1").exit_code == 0


class TestADeviceWithoutFloat64:
    @pytest.fixture(autouse=True)
    def no_float64(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr("l0compress.devices._WITHOUT_FLOAT64", (NAME,))
        with without_float64():
            yield

    @pytest.mark.parametrize("granularity", ["structured", "weights", "both"])
    def test_a_loop(self, granularity: str) -> None:
        graph = captured("convolutions with BatchNorm")
        trained = own_loop(graph, NAME, granularity)
        verify(trained.small, replace(trained.folded, graph_module=masked(trained.folded, trained.plan)))

    def test_a_run_with_targets_in_float64(self) -> None:
        split = blobs(64)
        values = l0.Split(split.inputs, split.targets.double())
        graph = capture(trained_mlp(values, out=1), (split.inputs[0][:2],))
        settings = replace(QUICK, epochs=2, device=NAME)
        result = finetune(graph, Data(values, values), {"macs": 0.5}, settings=settings)
        assert devices(result.small) == {"cpu"}

    def test_weights_in_float64_are_refused(self) -> None:
        split = blobs(64)
        graph = capture(trained_mlp(split), (split.inputs[0][:2],)).to(torch.float64)
        settings = replace(QUICK, epochs=2, device=NAME)
        with pytest.raises(InputError) as refused:
            finetune(graph, Data(split, split), {"macs": 0.5}, settings=settings)
        assert str(refused.value) == (
            "the model's '0.weight' is float64, which device 'simulated' does not support. Nothing was changed. "
            "Convert the model first, model.float(), or train it on the CPU."
        )


def test_what_mixes_devices_is_refused_here() -> None:
    there = torch.ones(3).to(NAME)
    for mixes in (
        lambda: there + torch.ones(3),
        lambda: torch.ones(3)[torch.tensor([0]).to(NAME)],
        lambda: there.index_select(0, torch.tensor([0])),
    ):
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            mixes()
