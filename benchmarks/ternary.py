"""LeNet-300-100 on MNIST with ternary weights: the error beside that of the float network, and the size of the files.

    python benchmarks/ternary.py [--seeds 1] [--epochs 24]

For every seed a network is trained dense, then ternary at several shares of nonzero parameters, with the package's
default settings otherwise, and in float at the same shares and epochs. With 60 % left, the budget removes no more than
the ternary threshold does by itself. Every small model is exported as ONNX and as a bundle, each checked against the
masked dense model, and the error is that of the bundle's outputs. The test part is read once a model.
MNIST is read from ``$L0COMPRESS_DATA/mnist/mnist.npz``, by default under ``../shared/data``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from mnist import error_percent, load_mnist, train_dense

from l0compress.data import Data, Split
from l0compress.export.bundle import BundleSettings, export_bundle
from l0compress.export.bundle_session import BundleSession
from l0compress.export.onnx import export_onnx
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings

# Nonzero parameters that are left at most, and what decides which.
SHARES = {0.6: "magnitude", 0.1: "l0"}
POINTS = 0.3


@dataclass(frozen=True)
class Row:
    """One model: error of its bundle on the test part in percent, parameters that are not zero, and bytes of files."""

    name: str
    error: float
    nonzeros: int
    onnx: int
    bundle: int


def bundle_error(path: Path, split: Split) -> float:
    """The share of wrong classes among the outputs of a bundle, in percent."""
    (outputs,) = BundleSession(path, threads=1)(*split.inputs).values()
    return 100 * float((outputs.argmax(-1) != split.targets).float().mean())


def row_of(name: str, graph: CapturedGraph, reference: CapturedGraph, split: Split) -> Row:
    """Export both files, each checked against ``reference``, and measure them."""
    with tempfile.TemporaryDirectory() as folder:
        exact = export_onnx(graph, Path(folder, "model.onnx"), reference=reference)
        settings = BundleSettings(threads=1, measure=False)
        bundle = export_bundle(graph, Path(folder, "model.l0c"), reference=reference, settings=settings)
        error = bundle_error(bundle.path, split)
        return Row(name, error, nonzero_cost(graph).params, exact.size_bytes, bundle.size_bytes)


def rows_of(graph: CapturedGraph, data: Data, seed: int, epochs: int) -> list[Row]:
    """The dense network, and for every share the ternary and the float one."""
    found = [row_of("dense, float", graph, graph, data.test)]
    for share, method in SHARES.items():
        for ternary in (True, False):
            started = time.perf_counter()
            settings = FinetuneSettings(epochs=epochs, seed=seed, method=method, granularity="weights", ternary=ternary)
            result = finetune(graph, data, {"params": share}, settings=settings)
            name = f"{share:.0%} nonzero, {'ternary' if ternary else 'float'}"
            found.append(row_of(name, result.small, masked(result.folded, result.plan), data.test))
            print(f"seed {seed}  {found[-1]}  {time.perf_counter() - started:.0f} s", flush=True)
    return found


def table(rows: list[list[Row]]) -> str:
    """Means over seeds, as Markdown."""
    lines = ["| | test error, % | nonzero parameters | ONNX, bytes | bundle, bytes |", "|---|---|---|---|---|"]
    for same in zip(*rows, strict=True):
        numbers = (mean(row.nonzeros for row in same), mean(row.onnx for row in same), mean(row.bundle for row in same))
        cells = " | ".join(f"{number:,.0f}" for number in numbers)
        lines.append(f"| {same[0].name} | {mean(row.error for row in same):.2f} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; 0 where ternary networks are within the bound of the dense float one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=24)
    options = parser.parse_args()
    data = load_mnist()
    rows: list[list[Row]] = []
    for seed in range(options.seeds):
        network = train_dense(data, seed, "adamw")
        print(f"seed {seed}  dense  test {error_percent(network, data.test):.2f} %", flush=True)
        rows.append(rows_of(capture(network, (data.train.inputs[0][:2],)), data, seed, options.epochs))
    print(f"\n{table(rows)}")
    means = {same[0].name: mean(row.error for row in same) for same in zip(*rows, strict=True)}
    dense, passed = means["dense, float"], True
    for name, error in means.items():
        if name.endswith("ternary"):
            within = error <= dense + POINTS
            passed &= within
            print(f"{name}: {error - dense:+.2f} points, wanted at most {POINTS:+.2f}: {'ok' if within else 'MISSED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
