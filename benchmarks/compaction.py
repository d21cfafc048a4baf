"""What a run saves by removing what is surely shut while gates are still learned: the same run with and without.

    python benchmarks/compaction.py [--target macs=0.25] [--epochs 30] [--seed 0] [--width 32]

A convolutional network on MNIST gets a gated phase of a thousand steps by default, long enough for gates to begin open.
The run without removals has ``compact_below`` so low that nothing is ever shut. Times are processor seconds on one
thread, so that other load on the machine counts little.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from mnist import load_mnist
from torch import nn
from torch.nn import functional as F

from l0compress.data import Data, Split
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.training.events import ProgressEvent
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings, GateSettings
from l0compress.training.state_dicts import GATES

SAMPLES, HELD_OUT, BATCH = 12_800, 2_000, 128
NEVER = 1e-30


def network(width: int) -> nn.Module:
    """Three convolutions and two linear layers."""
    layers: list[nn.Module] = []
    for narrow, wide in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36 * width, 128), nn.ReLU(), nn.Linear(128, 10))


def images() -> Data:
    """The first images of MNIST's parts."""
    data = load_mnist()

    def first(split: Split | None, count: int) -> Split:
        if split is None or split.targets is None:
            raise ValueError("MNIST has labels in every part")
        return Split((split.inputs[0][:count].view(-1, 1, 28, 28),), split.targets[:count])

    return Data(first(data.train, SAMPLES), first(data.val, HELD_OUT), first(data.test, HELD_OUT))


def dense_graph(data: Data, width: int, *, epochs: int = 2) -> CapturedGraph:
    torch.manual_seed(0)
    model = network(width)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(epochs):
        for batch in data.train.batches(BATCH, seed=epoch, drop_last=True):
            F.cross_entropy(batch.run(model), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    example = next(iter(data.train.batches(2)))
    return capture(model.eval(), example.args)


@dataclass
class Watch:
    """Processor seconds at the end of each epoch of the gated phase, and the moves that are left by then."""

    began: float
    rows: list[tuple[float, int]]

    def see(self, event: ProgressEvent) -> None:
        if event.stage == GATES and event.epoch_done:
            self.rows.append((time.process_time() - self.began, event.num_moves or 0))


def main() -> None:
    """Print a row with and one without removals, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="macs=0.25")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--below", type=float, default=GateSettings().compact_below)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = images()
    graph = dense_graph(data, arguments.width)
    settings = FinetuneSettings(epochs=arguments.epochs, seed=arguments.seed, batch_size=BATCH)
    print("| removals | gated phase, s | run, s | moves left, epoch by epoch | accuracy |\n|---|---:|---:|---|---:|")
    taken = []
    for below in (NEVER, arguments.below):
        watch = Watch(time.process_time(), [])
        gates = replace(settings.gates, compact_below=below)
        result = finetune(graph, data, arguments.target, settings=replace(settings, gates=gates), on_event=watch.see)
        whole, gated = time.process_time() - watch.began, watch.rows[-1][0]
        taken.append((gated, whole))
        moves = ", ".join(str(count) for _, count in watch.rows)
        name = "none" if below == NEVER else f"below {below:g}"
        print(f"| {name} | {gated:.1f} | {whole:.1f} | {moves} | {result.last_evaluation.metric:.4f} |", flush=True)
    (gated, whole), (gated_then, whole_then) = taken[1], taken[0]
    print(f"\nwith removals: {gated / gated_then:.2f} of the gated phase, {whole / whole_then:.2f} of the run")


if __name__ == "__main__":
    main()
