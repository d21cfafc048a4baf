"""Where tensors are: what moves with a network, what stays on the CPU, and that no operator mixes the two.

On a machine without a GPU, PyTorch checks the devices of every operator on a fake CUDA device, whose tensors have no
values. What needs values, gradients and optimizers runs on a simulated device, see ``on_simulated_device.py``.
"""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.utils.backend_registration
from conftest import save_pt2
from device_networks import NETWORKS, build
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from l0compress.data import Batch
from l0compress.devices import constant_on, device_of, forked_randomness, moved, repeatable
from l0compress.gates.attach import compact, gate
from l0compress.gates.network import GatedNetwork
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import find_groups
from l0compress.graph.nodes.placement import apart, named_devices
from l0compress.loading import load_pt2
from l0compress.verification.calls import Call, named_leaves

CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
UNITS = ("params", "macs", "bytes")


@contextmanager
def fake_cuda() -> Iterator[None]:
    """What is on ``cuda:0`` has no values; the devices of every operator are checked."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def run(network: nn.Module, graph: CapturedGraph) -> Tensor:
    """The first output on the graph's example, brought to the network's device."""
    call = Call(graph.example_args, graph.example_kwargs).to(device_of(network) or CPU)
    return next(iter(named_leaves(network(*call.args, **call.kwargs)).values()))


def check_on_cuda(gated: GatedNetwork, graph: CapturedGraph) -> None:
    with fake_cuda():
        gated.to(CUDA).eval()  # statistics would be written, which a fake cannot
        gated.read_factors.train()
        assert run(gated, graph).device == CUDA
        for unit in UNITS:
            cost = gated.expected_cost(unit)
            assert (cost.device, cost.dtype, cost.dim()) == (CUDA, torch.float64, 0)


@pytest.fixture(scope="module", params=NETWORKS)
def graph(request: pytest.FixtureRequest) -> CapturedGraph:
    return capture(*build(request.param))


@pytest.mark.mostly_slow
def test_a_gated_network_runs_and_costs_on_cuda_before_and_after_a_removal(graph: CapturedGraph) -> None:
    gated = gate(graph)
    with torch.no_grad():
        gated.gates.log_alpha[::5] = -8.0
    smaller = compact(gated).gated
    assert smaller.groups.num_moves < gated.groups.num_moves
    for network in (gated, smaller):
        check_on_cuda(network, graph)


@pytest.mark.mostly_slow
def test_what_is_left_of_a_network_runs_on_cuda(graph: CapturedGraph) -> None:
    plan = KeepPlan.random(find_groups(graph), seed=1)
    for network in (shrink(graph, plan).module(), masked(graph, plan)):
        with fake_cuda():
            assert run(network.to(CUDA), graph).device == CUDA


@pytest.mark.parametrize("granularity", ["weights", "both"])
def test_gates_on_single_weights_run_and_cost_on_cuda(granularity: str) -> None:
    graph = capture(*build("MLP"))
    gated = gate(graph, granularity=granularity)
    assert {gated.expected_cost(unit).device for unit in UNITS} == {CPU}
    with fake_cuda():
        assert run(gated.to(CUDA).eval(), graph).device == CUDA
        assert {gated.expected_cost(unit).device for unit in UNITS} == {CUDA}


class Counting(nn.Module):
    """Makes a tensor on a device that its code names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(8, device=x.device, dtype=x.dtype)
        return self.last(torch.relu(self.first(x)) + positions.to(x.device, torch.float32))


class TestLiteralDevices:
    @pytest.fixture
    def graph(self) -> CapturedGraph:
        graph = capture(Counting(), (torch.randn(3, 4),))
        assert devices_named(graph.module()) == {CPU}
        return graph

    def test_they_move_with_the_network_and_back(self, graph: CapturedGraph) -> None:
        network = graph.module()
        there = network.to_empty(device=META)
        assert devices_named(there) == {META}
        assert run(there, graph).device == META
        assert devices_named(graph.module()) == {CPU}

    def test_they_move_with_what_the_network_is_a_part_of(self, graph: CapturedGraph) -> None:
        gated = gate(graph).to_empty(device=META)
        assert devices_named(gated.network) == {META}
        assert run(gated, graph).device == META

    def test_a_copy_moves_by_itself(self, graph: CapturedGraph) -> None:
        network = graph.module()
        there = copy.deepcopy(network).to_empty(device=META)
        assert devices_named(network) == {CPU}
        assert devices_named(copy.deepcopy(there)) == {META}

    def test_another_dtype_leaves_them_alone(self, graph: CapturedGraph) -> None:
        there = graph.module().to_empty(device=META)
        assert devices_named(there.half()) == {META}


def devices_named(network: nn.Module) -> set[torch.device]:
    assert isinstance(network, torch.fx.GraphModule)
    return {device for node in network.graph.nodes for device in named_devices(node)}


class TestConstants:
    def test_one_is_copied_to_a_device_once(self) -> None:
        index = torch.arange(3)
        assert constant_on(index, META) is constant_on(index, META)
        assert constant_on(index, META).device == META
        assert constant_on(index, CPU) is index

    def test_what_is_copied_while_gradients_are_off_can_be_trained_with(self) -> None:
        factor = torch.ones(2, dtype=torch.float64)
        with torch.inference_mode():
            copied = constant_on(factor, CPU, torch.float32)
        weight = torch.ones(2, requires_grad=True)
        (weight * constant_on(factor, CPU, torch.float32)).sum().backward()
        assert not copied.is_inference()

    def test_a_fake_is_not_kept(self) -> None:
        index = torch.arange(3)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert isinstance(constant_on(index, META), torch._subclasses.FakeTensor)
        assert not isinstance(constant_on(index, META), torch._subclasses.FakeTensor)


def test_float64_becomes_float32_where_a_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l0compress.devices._WITHOUT_FLOAT64", ("meta",))
    fine, whole = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    batch = Batch((fine,), {"index": whole}, fine).to(META)
    assert batch.targets is not None
    assert [tensor.dtype for tensor in (*batch.args, *batch.kwargs.values(), batch.targets)] == [
        torch.float32,
        torch.int64,
        torch.float32,
    ]
    assert moved(fine, CPU).dtype == torch.float64


def test_randomness_is_as_it_was_also_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), forked_randomness():
        torch.manual_seed(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_cuda_repeats_itself_while_a_run_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(KeyError), repeatable("cuda:1"):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with repeatable("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_model_and_inputs_on_two_devices_are_named() -> None:
    assert apart(nn.Linear(4, 2).to(META), (torch.zeros(2, 4),), {}) == (
        " Model and inputs are on cpu and meta: bring them to one device."
    )
    assert apart(nn.Linear(4, 2), (torch.zeros(2, 4),), {}) == ""


def repacked(content: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """A zip with each of its entries changed."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(written, "w") as packed:
        for name in archive.namelist():
            packed.writestr(name, change(name, archive.read(name)))
    return written.getvalue()


def as_made_on_cuda(name: str, part: bytes) -> bytes:
    """What PyTorch on a GPU writes where it writes "cpu" here."""
    if name.endswith("sample_inputs/model.pt"):
        return repacked(part, as_made_on_cuda)
    if name.endswith(".json"):
        return part.replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')
    return part.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0") if name.endswith("data.pkl") else part


def test_an_archive_that_was_made_on_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    model, path = Counting(), tmp_path / "model.pt2"
    save_pt2(model, (torch.randn(3, 4),), path)
    made = repacked(path.read_bytes(), as_made_on_cuda)
    assert made.count(b"cuda") > 10
    path.write_bytes(made)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.export.load(path)

    graph = capture(load_pt2(path))
    assert devices_named(graph.module()) == {CPU}
    torch.testing.assert_close(run(graph.module(), graph), model(*graph.example_args))


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch takes no backend that is written in Python",
)
@pytest.mark.slow
def test_loops_and_runs_on_a_simulated_device() -> None:
    # PyTorch has a new device for good once it has one, so that this takes a process of its own.
    tests = Path(__file__).with_name("on_simulated_device.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    chosen = {**os.environ, "L0COMPRESS_SIMULATED_DEVICE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests.parent.parent, env=chosen)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
