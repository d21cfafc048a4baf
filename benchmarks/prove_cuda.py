"""What can only be shown on a GPU, in one table: equality, runs that go on bit for bit, the commands, and speed.

    python benchmarks/prove_cuda.py [--device cuda]

Takes under five minutes and needs no data. Exits with 1 if a check fails, with 2 where there is no such device.
``--device cpu`` runs the same checks on the CPU, to see that they work.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

# Before CUDA starts: without it cuBLAS may add up in any order.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torch.nn.functional as F
from command_line import l0 as command
from cuda_networks import CLASSES, NETWORKS, SIDE, Convolutions
from safetensors.torch import load, save
from torch import Tensor, nn

import l0compress as l0
from l0compress.data import Data, Split
from l0compress.devices import synchronize, widest_float
from l0compress.gates.attach import compact, gate
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.measure.table import Table
from l0compress.training.finetune import FinetuneResult, finetune
from l0compress.training.settings import FinetuneSettings, GateSettings
from l0compress.training.state_dicts import StateDict, Stateful
from l0compress.verification.calls import Call, named_leaves
from l0compress.verification.equality import difference, verify

# A check that fails in a way that nobody thought of is a row of the table, and the others go on.
FAULTS = (Exception,)
# The kernels of a GPU differ from width to width, so that float32 rounds otherwise; float64 is the proof.
LIMITS = {torch.float32: 1e-4, torch.float64: 1e-10}
STEPS = 20


class Failed(Exception):
    """A check that did not hold."""


@dataclass(frozen=True)
class Row:
    """One check: what it is, whether it held, and the number behind it."""

    check: str
    held: bool | None  # None: left out
    found: str


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Failed(message)


def built(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model, args = NETWORKS[name]()
    return model.eval(), args


def equality(name: str, device: torch.device) -> str:
    """Captured where it is, cut at random, and run there: the shrunk network against the masked dense one."""
    model, args = built(name)
    call = Call(args).to(device)
    graph = capture(model.to(device), call.args)
    worst = {}
    for dtype in dict.fromkeys((torch.float32, widest_float(device))):
        cast = graph.to(dtype)
        plan = KeepPlan.random(l0.find_groups(cast), seed=1)
        dense, small = masked(cast, plan).to(device), shrink(cast, plan).module().to(device)
        own = Call(cast.example_args)
        worst[dtype] = difference(small, dense, inputs=[own]).max_relative
        require(worst[dtype] <= LIMITS[dtype], f"off by {worst[dtype]:.1e} of the largest output in {dtype}")
    return ", ".join(f"{value:.1e} in {str(dtype).removeprefix('torch.')}" for dtype, value in worst.items())


def own_loop(name: str, device: torch.device) -> str:
    """Gates, penalty, steps, a removal, a decision and what it leaves, in a loop of one's own."""
    model, args = built(name)
    graph = capture(model, args)
    gated = gate(graph).to(device).train()
    budget = l0.Budget(gated, {"params": 0.6})
    call = Call(args).to(device)
    with torch.no_grad():
        gated.gates.log_alpha[::5] = -8.0
    for _ in range(2):
        optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-3), fused=True)
        for _ in range(STEPS // 2):
            loss = next(iter(named_leaves(gated(*call.args)).values())).square().mean() + budget.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            budget.step()
        require(bool(torch.isfinite(loss)), "the loss is not finite")
        before, compacted = gated.groups.num_moves, compact(gated)
        gated = compacted.gated
        budget.follow_(gated, compacted.kept_moves)
    plan = l0.harden(gated, budget)
    folded = l0.fold(gated, plan)
    small = l0.shrink(folded, plan)
    verify(small, replace(folded, graph_module=masked(folded, plan)))
    require({tensor.device.type for tensor in small.state().values()} == {"cpu"}, "the small graph is not on the CPU")
    return f"{before} moves before the last removal, {int(plan.keep.sum())} kept"


def images(num_samples: int, *, seed: int) -> Split:
    """Ten patterns under noise and small shifts: as hard as handwritten digits."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(7)).round()
    labels = torch.randint(CLASSES, (num_samples,), generator=generator)
    shifts = torch.randint(-1, 2, (num_samples,), generator=generator).tolist()
    shown = torch.stack([image.roll(shift, -1) for image, shift in zip(patterns[labels], shifts, strict=True)])
    return Split((shown + 0.7 * torch.randn(shown.shape, generator=generator),), labels)


@dataclass(frozen=True)
class Trained:
    """A network that knows the images."""

    graph: CapturedGraph
    data: Data


def trained(device: torch.device) -> Trained:
    torch.manual_seed(0)
    data = Data(images(4096, seed=1), images(1024, seed=2), images(1024, seed=3))
    model = Convolutions(16).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(3):
        for batch in data.train.batches(128, seed=epoch, drop_last=True):
            there = batch.to(device)
            F.cross_entropy(model(*there.args), there.targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return Trained(capture(model.eval(), (data.train.take(slice(0, 2)).args[0].to(device),)), data)


def settings(device: torch.device, epochs: int = 6) -> FinetuneSettings:
    gates = GateSettings(learning_rate=0.1, multiplier_rate=0.2)
    return FinetuneSettings(epochs=epochs, batch_size=128, device=str(device), gates=gates)


def a_run(subject: Trained, device: torch.device) -> str:
    result = finetune(subject.graph, subject.data, {"macs": 0.5}, settings=settings(device))
    reached = l0.cost(result.small).macs / l0.cost(subject.graph).macs
    dense, small = result.dense_evaluation.metric, result.best_evaluation.metric
    require(reached <= 0.5, f"{reached:.3f} of the MACs are left")
    require(small >= dense - 0.05, f"accuracy fell from {dense:.1%} to {small:.1%}")
    verify(result.small, replace(result.folded, graph_module=masked(result.folded, result.plan)))
    return f"{dense:.1%} dense, {small:.1%} with {reached:.1%} of the MACs"


@dataclass
class Shelf:
    """Keeps states as the bytes that a file would hold, one in ``every`` steps."""

    start: StateDict | None = None
    every: int = 40
    steps: int = 0
    kept: list[tuple[str, bytes]] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        self.steps += 1
        if self.start is None and (must or self.steps % self.every == 0):
            found = state.state_dict()
            tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
            self.elsewhere |= {tensor.device.type for tensor in tensors.values()} - {"cpu"}
            values = {name: value for name, value in found.items() if name not in tensors}
            apart = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
            self.kept.append((json.dumps(values, allow_nan=False), save(apart)))

    def read(self) -> Iterator[StateDict]:
        for values, tensors in self.kept:
            yield {**json.loads(values), **load(tensors)}


def bits(result: FinetuneResult) -> bytes:
    buffer = io.BytesIO()
    torch.save([result.plan.keep, *result.small.state().values(), *result.last.state().values()], buffer)
    return buffer.getvalue()


def going_on(subject: Trained, device: torch.device) -> str:
    """A run that goes on from its states, in either phase, ends in the bits of the one that was never stopped."""
    asked = {"settings": settings(device, epochs=3)}
    shelf = Shelf()
    whole = bits(finetune(subject.graph, subject.data, {"macs": 0.5}, checkpoints=shelf, **asked))
    require(not shelf.elsewhere, f"states hold tensors on {', '.join(shelf.elsewhere)}")
    require(len(shelf.kept) >= 3, "there are no states to go on from")
    for number, start in enumerate(shelf.read(), 1):
        again = bits(finetune(subject.graph, subject.data, {"macs": 0.5}, checkpoints=Shelf(start=start), **asked))
        require(again == whole, f"state {number}, saved in the phase {start['stage']!r}, leads to other bits")
    return f"from {len(shelf.kept)} states"


def commands(subject: Trained, device: torch.device) -> str:
    """A run by the command line, and what the other commands make of it."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        model, data, run = Path(folder, "model.pt2"), Path(folder, "images.npz"), Path(folder, "run")
        l0.export_pt2(subject.graph, model)
        split = subject.data.train.take(slice(0, 1500))
        np.savez(data, x=split.args[0].numpy(), y=split.targets.numpy())
        command("inspect", model)
        command("finetune", model, "--data", data, "--target", "macs=0.5", "--epochs", 3, "--device", device, "-o", run)
        command("finetune", "--resume", run)
        for format, suffix in (("onnx", ".onnx"), ("pt2", ".pt2")):
            command("export", run, "--format", format)
            command("verify", run / f"model{suffix}", "--against", run)
        named = str(device.type).encode() in (run / "model.pt2").read_bytes()
        require(device.type == "cpu" or not named, "model.pt2 names the device that the run was made on")
        command("bench", run / "model.onnx", "--batch", 1)
    return "inspect, finetune, resume, export, verify, bench"


def speed(device: torch.device) -> str:
    """Milliseconds of a training step with gates, on the device and on the CPU."""
    times = []
    for place in (device, torch.device("cpu")):
        torch.manual_seed(0)
        x, y = torch.randn(256, 1, 24, 24).to(place), torch.randint(CLASSES, (256,)).to(place)
        gated = gate(capture(Convolutions(64), (x[:2].cpu(),))).to(place).train()
        budget = l0.Budget(gated, {"macs": 0.5})
        optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-3), fused=True)
        taken = []
        for _ in range(3 + 10):
            began = time.perf_counter()
            (F.cross_entropy(gated(x), y) + budget.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            budget.step()
            synchronize(place)
            taken.append(time.perf_counter() - began)
        times.append(1e3 * sorted(taken[3:])[5])
    return f"{times[0]:.1f} ms, on the CPU {times[1]:.1f} ms ({times[1] / times[0]:.1f} times as long)"


def checked(check: str, run: Callable[[], str]) -> Row:
    print(f"... {check}", flush=True)
    try:
        return Row(check, True, run())
    except ModuleNotFoundError as missing:
        return Row(check, None, f"left out: {str(missing).splitlines()[0]}")
    except FAULTS as fault:
        if not isinstance(fault, Failed):
            traceback.print_exc()
        return Row(check, False, f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}")


def rows(device: torch.device) -> Iterator[Row]:
    for name in NETWORKS:
        yield checked(f"masked equals shrunk: {name}", lambda name=name: equality(name, device))
    for name in NETWORKS:
        yield checked(f"a loop of one's own: {name}", lambda name=name: own_loop(name, device))
    held: list[Trained] = []

    def prepare() -> str:
        held.append(trained(device))
        return "4,096 images of 12x12, three epochs"

    yield checked("a network is trained", prepare)
    for subject in held:
        yield checked("a run to half of the MACs", lambda subject=subject: a_run(subject, device))
        yield checked("a run goes on bit for bit", lambda subject=subject: going_on(subject, device))
        yield checked("the commands", lambda subject=subject: commands(subject, device))
    yield checked("a training step with gates", lambda: speed(device))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps; cpu to see that the checks work")
    device = torch.device(parser.parse_args().device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as reason:
        print(f"There is no device {str(device)!r} here, so nothing was checked: {str(reason).splitlines()[0]}")
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    began = time.perf_counter()
    found = list(rows(device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    cells = tuple((row.check, {True: "yes", False: "NO", None: "-"}[row.held], row.found) for row in found)
    about = f"{name}, PyTorch {torch.__version__}, {time.perf_counter() - began:.0f} s"
    print(Table("", ("check", "held", "found"), cells, (about,)).to_markdown())
    return 1 if any(row.held is False for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
