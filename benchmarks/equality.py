"""How equal shrunk models are to their masked dense ones, for every network of the tests and a pretrained ResNet-20.

    make bench-equality

For each network and each density of a random plan: the largest difference relative to the largest output, in float64
and float32 under PyTorch, and in float32 under ONNX Runtime at batch sizes 1 and 11; and what is left of the
parameters. The last column is how far the masked model is from the dense one, so that equality means something.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import models
import torch
from resnet20 import WEIGHTS, ResNet20
from torch import nn

import l0compress as l0
from l0compress.export.session import OnnxSession
from l0compress.verification.calls import BATCH_SIZES, example_calls, named_leaves

DENSITIES = (0.7, 0.4, 0.15)
COLUMNS = ("network", "density", "parameters", "float64", "float32", "ONNX Runtime", "away from dense")


def pretrained_resnet20() -> models.Built:
    """ResNet-20 with the weights that were trained on CIFAR-10."""
    model = ResNet20()
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval(), (torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),), {}


def networks() -> Iterator[tuple[str, models.Built]]:
    for name in models.ZOO:
        yield name, models.build(name)
    if WEIGHTS.exists():
        yield "ResNet-20, pretrained", pretrained_resnet20()
    else:
        print(f"left out: the pretrained ResNet-20, since {WEIGHTS} does not exist")


def distance(small: nn.Module, dense: nn.Module, graph: l0.CapturedGraph) -> float:
    """Largest difference of any output, relative to that output's largest magnitude."""
    with torch.no_grad():
        got = named_leaves(small(*graph.example_args, **graph.example_kwargs))
        expected = named_leaves(dense(*graph.example_args, **graph.example_kwargs))
    return max(float((got[name] - value).abs().max() / value.abs().max()) for name, value in expected.items())


def row(name: str, graph: l0.CapturedGraph, density: float, seed: int) -> tuple[str, ...]:
    plan = l0.KeepPlan.random(l0.find_groups(graph), density, seed)
    small, reference = l0.shrink(graph, plan), l0.masked(graph, plan)
    wide = graph.to(torch.float64)
    wide_plan = l0.KeepPlan.random(l0.find_groups(wide), density, seed)
    double = l0.verify(l0.shrink(wide, wide_plan), l0.masked(wide, wide_plan), tolerance=1e-10).max_relative
    single = l0.verify(small, reference, tolerance=1e-5).max_relative
    with tempfile.TemporaryDirectory() as folder:
        l0.export_onnx(small, Path(folder) / "small.onnx", reference=reference)
        session = OnnxSession(Path(folder) / "small.onnx", threads=2)
        calls = example_calls(graph, BATCH_SIZES)
        exported = l0.verify(session, reference, inputs=calls, tolerance=1e-5).max_relative
    share = l0.cost(small).params / l0.cost(graph).params
    away = distance(reference, graph.module(), graph)
    return name, f"{density:g}", f"{share:.1%}", f"{double:.1e}", f"{single:.1e}", f"{exported:.1e}", f"{away:.1g}"


def main() -> None:
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for name, (model, args, kwargs) in networks():
        graph = l0.capture(model, args, kwargs)
        for seed, density in enumerate(DENSITIES):
            print("| " + " | ".join(row(name, graph, density, seed)) + " |", flush=True)


if __name__ == "__main__":
    main()
