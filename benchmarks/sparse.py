"""Sparse layers against dense and int8 ones: a sweep over size, density and batch, and where the lines cross.

    make bench-sparse                          # python benchmarks/sparse.py [--quick] [--threads 2] [--seconds 2]

Everything is timed in one process, in turns: ONNX Runtime with the dense layer, ONNX Runtime with its int8 form (per
channel; dynamic for products, static for convolutions), and every engine of ``l0compress_runtime`` that is installed.
Writes docs/sparse.md and docs/sparse.svg; ``--quick`` takes two minutes, times fewer layers and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from sparse_cases import DENSE, INT8, Case, Result, measured
from sparse_page import describe, write_page, write_plot

DOCS = Path(__file__).parent.parent / "docs"
SIZES, QUICK_SIZES = (512, 1024, 2048, 4096), (1024, 4096)
DENSITIES, QUICK_DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01), (0.1, 0.05, 0.02)
BATCHES = (1, 8, 64)

# What has to hold: who, over whom, how many times, for a layer and a density at each of some batch sizes.
Wanted = tuple[str, str, float, str, float, tuple[int, ...]]
WANTED: tuple[Wanted, ...] = (
    ("scipy", DENSE, 3.0, "4096x4096", 0.05, (1,)),
    ("scipy", DENSE, 2.0, "4096x4096", 0.05, (64,)),
    ("best", DENSE, 5.0, "4096x4096", 0.05, (8, 64)),
    ("scipy", DENSE, 1.5, "4096x4096", 0.1, (1, 8, 64)),
    ("best", DENSE, 3.0, "4096x4096", 0.1, (1, 8, 64)),
    ("scipy", DENSE, 1.5, "1024x1024", 0.05, (1,)),
    ("best", DENSE, 3.0, "1024x1024", 0.05, (64,)),
    ("best", INT8, 1.0, "4096x4096", 0.05, (1, 8, 64)),
    ("best", INT8, 2.0, "4096x4096", 0.02, (1, 8, 64)),
    ("best", DENSE, 1.5, "3x3 conv, 128 channels, 28x28", 0.05, (1,)),
    ("best", DENSE, 2.0, "1x1 conv, 128 channels, 28x28", 0.05, (1,)),
)


def cases(*, quick: bool) -> list[Case]:
    sizes, densities = (QUICK_SIZES, QUICK_DENSITIES) if quick else (SIZES, DENSITIES)
    linear = [Case("linear", *options) for options in product(sizes, densities, BATCHES)]
    images = [(128, 28), (64, 56), (256, 14), (512, 7)]
    convolutions = [
        Case("conv", size, density, batch, kernel, image)
        for kernel, (size, image), density, batch in product((3, 1), images, (0.1, 0.05, 0.02), (1, 8))
        if not quick or ((size, density, batch) == (128, 0.05, 1))
    ]
    return linear + convolutions


def achieved(results: Sequence[Result], wanted: Wanted) -> list[tuple[str, bool]]:
    """Every wanted number in words, and whether it was reached."""
    who, over, times, layer, density, batches = wanted
    rows = []
    for result in results:
        case = result.case
        if (case.layer, case.density) == (layer, density) and case.batch in batches:
            name = result.best() if who == "best" else who
            reached = result.speedup(name, over)
            words = (
                f"{layer} at {1 - density:.0%} zeros, batch {case.batch}: {who} engine ({name}) {reached:.2f}x {over}"
            )
            rows.append((f"{words}, wanted {times:g}x", reached >= times))
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer layers, no files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="for one layer at one batch size (default 2, quick 1)")
    options = parser.parse_args(arguments)
    seconds = options.seconds or (1.0 if options.quick else 2.0)
    results: list[Result] = []
    for case in cases(quick=options.quick):
        results.append(measured(case, options.threads, seconds))
        print(describe(results[-1]), flush=True)
    checks = [check for wanted in WANTED for check in achieved(results, wanted)]
    print(*(f"{'ok    ' if passed else 'MISSED'} {words}" for words, passed in checks), sep="\n")
    if not options.quick:
        write_plot(results, DOCS / "sparse.svg", options.threads)
        write_page(results, checks, DOCS / "sparse.md", options.threads)
    return int(not all(passed for _, passed in checks))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
