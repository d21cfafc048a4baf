"""Capture, label, group and shrink torchvision's ResNet-50: seconds of each step, and memory beyond the model.

Run it with ``make bench-capture``. Memory is the peak resident size of the process, less what it held when the model
was built and had run once.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision_without_ops

import l0compress as l0


def resident_mb() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(label: str, step: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = step()
    seconds = time.perf_counter() - start
    SECONDS.append(seconds)
    print(f"{label:<10}{seconds:8.2f} s")
    return result


SECONDS: list[float] = []


def main(name: str = "resnet50") -> None:
    model = torchvision_without_ops.load().models.get_model(name, weights=None).eval()
    example = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        model(example)
    before = resident_mb()
    print(f"{name}, {torch.get_num_threads()} threads, batch 2 at 224 px, {before:.0f} MiB resident with the model")
    graph = timed("capture", lambda: l0.capture(model, (example,)))
    groups = timed("group", lambda: l0.find_groups(graph))
    plan = timed("plan", lambda: l0.KeepPlan.random(groups, density=0.5, seed=0))
    small = timed("shrink", lambda: l0.shrink(graph, plan))
    print(f"{'total':<10}{sum(SECONDS):8.2f} s")
    print(f"memory beyond the model: {resident_mb() - before:.0f} MiB")
    equality = l0.verify(small, l0.masked(graph, plan))
    dense, left = l0.cost(graph), l0.cost(small)
    print(f"parameters {dense.params:,} -> {left.params:,}; MACs {dense.macs:,} -> {left.macs:,}")
    print(f"largest difference from the masked dense model, relative: {equality.max_relative:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
