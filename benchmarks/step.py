"""What a training step with gates costs, in time and memory, against dense training of the same network.

    make bench-step      # python benchmarks/step.py [--threads 1] [--rounds 15] [--only MiniLM] [--compile]

A step is what the built-in training does on one batch, without the teacher: forward, loss, backward, clipping and fused
AdamW; with gates also the budget's penalty, fused Adam on the gates and the multiplier's ascent. The dense network is
the captured one, which runs the same operators. Networks take turns, so that other load on the machine meets all alike;
times are medians, ratios are medians over the rounds. On one thread they are processor time, which other load affects
least. Memory is the largest sum of live tensors while a step runs,
weights, gradients and optimizer state included, as torch's own profiler of allocations counts it. ``--compile`` adds
each network under ``torch.compile``. Exit code 0 where structured gates are within 1.15 times dense training in every
network, and those of single weights and of both within 1.5.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import torch
import torchvision_without_ops
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from l0compress.gates.attach import Granularity, gate
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.training.budget import Budget
from l0compress.training.optim import update_, weight_optimizer
from l0compress.verification.calls import named_leaves

BOUNDS: dict[Granularity, float] = {"structured": 1.15, "weights": 1.5, "both": 1.5}
VARIANTS: tuple[Granularity | None, ...] = (None, *BOUNDS)
UNTIMED = 3

Step = Callable[[], None]
Kind = tuple[Granularity | None, bool]  # the gates, and whether the network is compiled


class Reader(nn.Module):
    """Two recurrent layers over 32 steps and a head on the last."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers, self.head = nn.LSTM(64, width, num_layers=2, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for width_in, width in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def resnet18() -> nn.Module:
    return torchvision_without_ops.load().models.resnet18(num_classes=10)


def minilm() -> nn.Module:
    """The architecture of all-MiniLM-L6-v2 with a head, its weights drawn anew: a step takes as long."""
    torchvision_without_ops.load()
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=10
    )
    return BertForSequenceClassification(config)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-18, 64 px, batch 32": lambda: (resnet18(), torch.randn(32, 3, 64, 64)),
    "MiniLM, 32 tokens, batch 32": lambda: (minilm(), torch.randint(1000, (32, 32))),
    "LSTM 2x256, 32 steps, batch 32": lambda: (Reader(), torch.randn(32, 32, 64)),
    "LeNet-300-100, batch 128": lambda: (perceptron(784, 300, 100, 10), torch.randn(128, 784)),
    "MLP 2x2048, batch 128": lambda: (perceptron(2048, 2048, 2048, 10), torch.randn(128, 2048)),
}


def step_of(graph: CapturedGraph, inputs: Tensor, granularity: Granularity | None, *, compiled: bool = False) -> Step:
    """One training step of the dense network (None) or of the gated one."""
    targets = torch.arange(len(inputs)) % 10
    if granularity is None:
        dense = graph.module().train()
        weights = dict(dense.named_parameters())
        optimizers = [weight_optimizer(weights, "adamw", learning_rate=1e-4, weight_decay=0.05)]
        run = torch.compile(dense) if compiled else dense

        def dense_step() -> None:
            loss_of(run(inputs), targets).backward()
            update_(weights.values(), optimizers, clip=1.0)

        return dense_step
    gated = gate(graph, granularity=granularity)
    weights, gates = gated.weights(), list(gated.gate_parameters().values())
    optimizers = [
        weight_optimizer(weights, "adamw", learning_rate=1e-4, weight_decay=0.05),
        torch.optim.Adam(gates, lr=1e-3, fused=True),
    ]
    budget = Budget(gated, {"macs": 0.25})
    run_gated = torch.compile(gated) if compiled else gated

    def gated_step() -> None:
        (loss_of(run_gated(inputs), targets) + budget.penalty()).backward()
        update_(weights.values(), optimizers, clip=1.0)
        budget.step()

    return gated_step


def loss_of(outputs: object, targets: Tensor) -> Tensor:
    return F.cross_entropy(next(iter(named_leaves(outputs).values())), targets)


def seconds(steps: Mapping[Kind, Step], rounds: int) -> dict[Kind, list[float]]:
    """The times of a step of each variant, variants taking turns."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[Kind, list[float]] = {name: [] for name in steps}
    for number in range(rounds + UNTIMED):
        for name, step in steps.items():
            begin = clock()
            step()
            if number >= UNTIMED:
                taken[name].append(clock() - begin)
    return taken


def peak_bytes(make: Callable[[], Step]) -> int:
    """The most that tensors made by ``make`` and by its steps hold at a time."""
    gc.collect()  # what is freed while the profiler looks would count against what is allocated
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


def rows_of(name: str, arguments: argparse.Namespace) -> dict[Granularity, float]:
    """Print the rows of a network; returns the time of a step with each kind of gates, relative to dense."""
    network, inputs = NETWORKS[name]()
    graph = capture(network, (inputs[:2],))
    modes = (False, True) if arguments.compile else (False,)
    steps: dict[Kind, Step] = {
        (variant, compiled): step_of(graph, inputs, variant, compiled=compiled)
        for compiled in modes
        for variant in VARIANTS
    }
    times = seconds(steps, arguments.rounds)
    steps.clear()
    memory = {variant: peak_bytes(partial(step_of, graph, inputs, variant)) for variant in VARIANTS}
    found: dict[Granularity, float] = {}
    for (variant, compiled), taken in times.items():
        ratio = median(mine / dense for mine, dense in zip(taken, times[None, False], strict=True))
        cells = [name, str(arguments.threads), f"{variant or 'none (dense)'}{', compiled' * compiled}"]
        cells += [f"{1e3 * median(taken):.2f}", f"{ratio:.2f}"]
        held = memory[variant]
        cells += ["", ""] if compiled else [f"{held / 2**20:.1f}", f"{held / memory[None]:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        if variant is not None and not compiled:
            found[variant] = ratio
    return found


def main() -> int:
    """Print a row for each network and kind of gates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="networks whose name has this in it")
    parser.add_argument("--compile", action="store_true", help="each network under torch.compile, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print("| network | threads | gates | ms a step | x dense | MiB | x dense |\n|---|---:|---|---:|---:|---:|---:|")
    worst: dict[str, float] = dict.fromkeys(BOUNDS, 0.0)
    for name in NETWORKS:
        if arguments.only in name:
            for variant, ratio in rows_of(name, arguments).items():
                worst[variant] = max(worst[variant], ratio)
    print("\n" + "; ".join(f"{name}: at most {worst[name]:.2f}, wanted {bound}" for name, bound in BOUNDS.items()))
    return 0 if all(worst[name] <= bound for name, bound in BOUNDS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
