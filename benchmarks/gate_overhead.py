"""What gates on single weights cost: time of a training step and memory, against dense training of the same network.

    python benchmarks/gate_overhead.py [--threads 1] [--rounds 30]

A step is forward, backward and both optimizers (fused AdamW on the weights, fused Adam on the gates), and with gates
the budget's penalty. Networks take turns, so that other load on the machine meets both alike. Memory is the largest
sum of live tensors while a step runs, weights, gradients and optimizer state included, as torch's own profiler of
allocations counts it. Exit code 0 where both are within 2.5 times dense training for every network.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from mnist import LeNet
from resnet20 import ResNet20
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from l0compress.gates.attach import GatedNetwork, Granularity, gate
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.training.budget import Budget

BOUND = 2.5
VARIANTS: tuple[Granularity | None, ...] = (None, "weights", "both")


class Encoder(nn.Module):
    """Two transformer layers of width 256 on 64 positions, the shape of a small language model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.table(tokens)).mean(1))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "LeNet-300-100, batch 128": lambda: (LeNet(), torch.randn(128, 784)),
    "ResNet-20, batch 64": lambda: (ResNet20(), torch.randn(64, 3, 32, 32)),
    "transformer 2x256, batch 16": lambda: (Encoder(), torch.randint(1000, (16, 64))),
    "MLP 2x2048, batch 128": lambda: (
        nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)),
        torch.randn(128, 2048),
    ),
}


def step_of(graph: CapturedGraph, inputs: Tensor, granularity: Granularity | None) -> Callable[[], None]:
    """One training step of the dense network (None) or of the gated one."""
    network = graph.module() if granularity is None else gate(graph, granularity=granularity)
    network.train()
    targets = torch.randint(10, (len(inputs),))
    weights = network.weights().values() if isinstance(network, GatedNetwork) else network.parameters()
    optimizers = [torch.optim.AdamW(list(weights), lr=1e-4, fused=True)]
    budget = None
    if isinstance(network, GatedNetwork):
        optimizers.append(torch.optim.Adam(list(network.gate_parameters().values()), lr=1e-3, fused=True))
        budget = Budget(network, {"params": 0.1})

    def step() -> None:
        loss = F.cross_entropy(network(inputs), targets)
        if budget is not None:
            loss = loss + budget.penalty()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if budget is not None:
            budget.step()

    return step


def seconds(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median time of a step, variants taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number >= 3:
                taken[name].append(time.perf_counter() - begin)
    return {name: median(values) for name, values in taken.items()}


def peak_bytes(make: Callable[[], Callable[[], None]]) -> int:
    """The most that tensors made by ``make`` and by its steps hold at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step = make()
        for _ in range(2):
            step()
    events = recorded.profiler.kineto_results.events() if recorded.profiler is not None else []
    sizes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    running = highest = 0
    for _, size in sorted(sizes):
        running += size
        highest = max(highest, running)
    return highest


def main() -> int:
    """Print a row for each network and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print("| network | gates | ms a step | x dense | MiB | x dense |\n|---|---|---:|---:|---:|---:|")
    worst = 0.0
    for name, make in NETWORKS.items():
        network, inputs = make()
        graph = capture(network, (inputs[:2],))
        makers = {str(variant): partial(step_of, graph, inputs, variant) for variant in VARIANTS}
        times = seconds({variant: maker() for variant, maker in makers.items()}, arguments.rounds)
        memory = {variant: peak_bytes(maker) for variant, maker in makers.items()}
        for variant in makers:
            ratios = times[variant] / times["None"], memory[variant] / memory["None"]
            worst = max(worst, *ratios) if variant == "weights" else worst
            cells = (f"{1e3 * times[variant]:.2f}", f"{ratios[0]:.2f}", f"{memory[variant] / 2**20:.1f}")
            gates = variant.replace("None", "none (dense)")
            print(f"| {name} | {gates} | {' | '.join(cells)} | {ratios[1]:.2f} |", flush=True)
    print(f"\nGates on weights: at most {worst:.2f} times dense training, wanted at most {BOUND}.")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
