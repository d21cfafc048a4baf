"""What the passes of the ONNX export buy: files with and without them, timed in turns.

    python benchmarks/leaner_files.py [--only NAME ...] [--threads 2]

Each network is exported dense and cut at random to half and a quarter of its MACs, widths in multiples of 8, once
as the converter of torch leaves the graph and once as ``l0compress`` writes it. Both are verified equal. Printed are
the kernels that ONNX Runtime runs a call, median milliseconds at batch 1 and 8, and their ratio. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
import torchvision_without_ops
from torch import nn

import l0compress as l0
from l0compress.export import onnx as exporter
from l0compress.export.session import OnnxSession
from l0compress.graph.groups.groups import Groups
from l0compress.measure.bench import bench

SHARES = {"dense": None, "half": 0.5, "quarter": 0.25}
BATCH_SIZES = (1, 8)


def minilm() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The sizes of all-MiniLM-L6-v2, at 32 tokens."""
    torchvision_without_ops.load()
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return BertForSequenceClassification(config), (torch.randint(0, 1000, (2, 32)),)


def vit_s() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    models = torchvision_without_ops.load().models
    return models.VisionTransformer(224, 16, 12, 6, 384, 1536), (torch.randn(2, 3, 224, 224),)


def of_torchvision(name: str) -> Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    return lambda: (torchvision_without_ops.load().models.get_model(name), (torch.randn(2, 3, 224, 224),))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "MiniLM, 32 tokens": minilm,
    "ViT-S/16": vit_s,
    "ResNet-18": of_torchvision("resnet18"),
    "MobileNetV2": of_torchvision("mobilenet_v2"),
}


def plan_at(groups: Groups, macs: float) -> l0.KeepPlan:
    """A random plan of at most so many MACs; every group keeps nearly the same share, in multiples of 8."""
    low, high = 0.0, 1.0
    for _ in range(12):
        level = (low + high) / 2
        plan = plan_of(groups, level)
        low, high = (low, level) if plan.cost.macs > macs else (level, high)
    return plan_of(groups, low)


def plan_of(groups: Groups, level: float) -> l0.KeepPlan:
    generator, dropped = np.random.default_rng(0), []
    for group in groups.groups:
        size = len(group.moves)
        kept = max(1, round(min(1.0, level * generator.uniform(0.85, 1.15)) * size))
        kept = min(size, max(8, round(kept / 8) * 8)) if size >= 16 else kept
        dropped += [group.moves[int(position)] for position in generator.permutation(size)[kept:]]
    return l0.KeepPlan.without(groups, dropped)


@contextmanager
def converter_alone() -> Iterator[None]:
    """Export as the converter does by itself, apart from what files would be wrong or refused without."""
    with (
        patch.object(exporter, "ATTENTION", {}),
        patch.object(exporter, "simplify_known_"),
        patch.object(exporter, "simplify_shapes_"),
    ):
        yield


def kernels(path: Path, feeds: dict[str, Any], folder: Path) -> int:
    """Count the nodes that ONNX Runtime executes in one call."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    return sum(event["name"].endswith("_kernel_time") for event in events)


def compare(graph: l0.CapturedGraph, threads: int) -> tuple[str, ...]:
    """Cells of one row: kernels before and after, and milliseconds before and after with their ratio, by batch size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with converter_alone():
            before = l0.export_onnx(graph, folder / "before.onnx").path
        after = l0.export_onnx(graph, folder / "after.onnx").path
        session = OnnxSession(after)
        feeds = session.feeds(session.example_call(1))
        counts = [kernels(path, feeds, folder) for path in (before, after)]
        report = bench({"before": before, "after": after}, graph, batch_sizes=BATCH_SIZES, threads=threads)
    cells = [" → ".join(map(str, counts))]
    for size in BATCH_SIZES:
        times = [report.timing(form, size).median_ms for form in ("before", "after")]
        cells.append(f"{times[0]:.2f} → {times[1]:.2f} ({times[1] / times[0]:.2f})")
    return tuple(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    print("| network | size | kernels | batch 1, ms | batch 8, ms |\n|---|---|---:|---:|---:|")
    for name in chosen.only:
        torch.manual_seed(0)
        model, example = NETWORKS[name]()
        graph = l0.capture(model.eval(), example)
        groups, dense = l0.find_groups(graph), l0.cost(graph)
        for size, share in SHARES.items():
            small = graph if share is None else l0.shrink(graph, plan_at(groups, share * dense.macs))
            print("|", " | ".join([name, size, *compare(small, chosen.threads)]), "|", flush=True)


if __name__ == "__main__":
    main()
