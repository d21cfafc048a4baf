"""The table and the drawing of the sparse benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from sparse_cases import DENSE, INT8, Result, limit_us, peak_gmacs_a_second, read_gb_a_second

HEAD = """# Sparse layers against dense and int8 ones

Written by `make bench-sparse`, which times everything in one process and in turns: ONNX Runtime with the dense layer
and with its int8 form (per channel; dynamic for products, static for convolutions, where dynamic is far slower), and
the engines of `l0compress_runtime`. The zeros are at random places, the hardest case for a sparse product. Times are
medians; `2.0x` is twice as fast as dense ONNX Runtime.

"""
LIMITS = """
## The limits

*limit* is the least time that the layer could take on this machine: its weight, four bytes a value and two an index,
read at the speed that was measured for so many bytes ({cache:.0f} GB/s for a weight of 4 MB, {memory:.0f} GB/s for one
of 256 MB), or all its products at the rate of ONNX Runtime's own dense product ({peak:.0f} · 10⁹ multiply-adds a
second), whichever takes longer. At batch 1 a sparse product cannot come near: every nonzero is a read from another
place, and a core does one or two such reads a cycle. From batch 8 on the reads are as wide as the registers.
"""
CROSSOVER = """
## Where the lines cross

The density below which the fastest engine beats dense ONNX Runtime and its int8 form; `>` is beyond the densities that
were timed.

| layer | batch | faster than dense below | faster than int8 below |
|---|---|---|---|
"""


def describe(result: Result) -> str:
    """One line for the terminal."""
    case = result.case
    times = ", ".join(f"{name} {us:.0f}" for name, us in result.us.items())
    over = result.speedup(result.best()), result.speedup(result.best(), INT8)
    return (
        f"{case.layer}, density {case.density:g}, batch {case.batch}: {times} us; "
        f"{result.best()} {over[0]:.2f}x dense, {over[1]:.2f}x int8"
    )


def crossing(results: Sequence[Result], over: str) -> str:
    """The density at which the best engine and ``over`` take the same time, between the two densities around it."""
    ordered = sorted(results, key=lambda result: -result.case.density)
    gains = [np.log(result.speedup(result.best(), over)) for result in ordered]
    if gains[0] > 0:
        return f"> {ordered[0].case.density:g}"
    for (before, here), (slow, fast) in zip(pairwise(ordered), pairwise(gains), strict=True):
        if fast > 0:
            low, high = np.log(here.case.density), np.log(before.case.density)
            return f"{np.exp(high + (low - high) * slow / (slow - fast)):.2g}"
    return f"< {ordered[-1].case.density:g}"


def _by_layer(results: Sequence[Result]) -> dict[tuple[str, int], list[Result]]:
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case.layer, result.case.batch), []).append(result)
    return groups


def _row(result: Result, engines: Sequence[str], threads: int) -> str:
    case = result.case
    speedups = [f"{result.speedup(name):.2f}x" if name in result.us else "-" for name in (INT8, *engines)]
    cells = [
        case.layer,
        f"{case.density:g}",
        str(case.batch),
        f"{result.us[DENSE]:.0f}",
        *speedups,
        f"{result.us[result.best()]:.0f}",
        f"{limit_us(case, threads):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def write_page(results: Sequence[Result], checks: Sequence[tuple[str, bool]], path: Path, threads: int) -> None:
    """docs/sparse.md."""
    engines = [name for name in results[0].us if name not in (DENSE, INT8)]
    columns = ["layer", "density", "batch", "dense µs", "int8", *engines, "best µs", "limit µs"]
    rows = [_row(result, engines, threads) for result in results]
    crossings = [
        f"| {layer} | {batch} | {crossing(group, DENSE)} | {crossing(group, INT8)} |"
        for (layer, batch), group in _by_layer(results).items()
    ]
    limits = LIMITS.format(
        cache=read_gb_a_second(1 << 22, threads),
        memory=read_gb_a_second(1 << 28, threads),
        peak=peak_gmacs_a_second(threads),
    )
    parts = [
        HEAD,
        f"This run used {threads} thread{'s' * (threads > 1)}.\n\n![speedup over density](sparse.svg)\n",
        "\n## What was wanted\n\n"
        + "\n".join(f"- {words}{'' if ok else ' **missed**'}" for words, ok in checks)
        + "\n",
        CROSSOVER + "\n".join(crossings) + "\n",
        limits,
        "\n## Every layer\n\n| "
        + " | ".join(columns)
        + " |\n"
        + "|---" * len(columns)
        + "|\n"
        + "\n".join(rows)
        + "\n",
    ]
    path.write_text("".join(parts), encoding="utf-8")


def write_plot(results: Sequence[Result], path: Path, threads: int) -> None:
    """docs/sparse.svg: a panel a linear layer and batch; a line an engine, int8, and the limit."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same numbers give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "sparse"
    matplotlib.rcParams["svg.fonttype"] = "none"
    groups = {key: group for key, group in _by_layer(results).items() if group[0].case.kind == "linear"}
    batches = sorted({batch for _, batch in groups})
    layers = list(dict.fromkeys(layer for layer, _ in groups))
    figure, grid = pyplot.subplots(
        len(layers), len(batches), figsize=(4 * len(batches), 3 * len(layers)), squeeze=False
    )
    for (layer, batch), group in groups.items():
        panel = grid[layers.index(layer)][batches.index(batch)]
        density = [result.case.density for result in group]
        for name in group[0].us:
            style = "k--" if name == INT8 else "k-" if name == DENSE else "o-"
            panel.plot(density, [result.speedup(name) for result in group], style, ms=3, lw=1.2, label=name)
        limit = [result.us[DENSE] / limit_us(result.case, threads) for result in group]
        panel.plot(density, limit, ":", color="grey", label="limit")
        panel.set(xscale="log", yscale="log", title=f"{layer}, batch {batch}")
        panel.axvline(_number(crossing(group, DENSE)), color="grey", lw=0.5)
        panel.invert_xaxis()
        panel.set_xticks(density, [f"{value:g}" for value in density], minor=False)
        panel.set_xticks([], minor=True)
    grid[-1][0].set(xlabel="density", ylabel="times as fast as dense")
    grid[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _number(crossing_text: str) -> float:
    return float(crossing_text.lstrip("<> "))
