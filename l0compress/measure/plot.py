"""A bench report as a picture: the latency of each candidate at each batch size, on a logarithmic scale."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from l0compress.errors import InputError
from l0compress.export.files import staged, written_file
from l0compress.measure.bench import BenchReport

SUFFIXES = (".png", ".svg", ".pdf")


def plot_latency(report: BenchReport, path: str | Path) -> Path:
    """Draw a report: one group of bars a batch size, one bar a candidate, a whisker up to the 95th percentile.

    Raises:
        InputError: as :func:`check_picture` says.
    """
    path = Path(path)
    check_picture(path)
    with staged(path) as staging:
        _draw(report, staging)
    return path


def check_picture(path: Path) -> None:
    """Raises:
    InputError: another suffix than ``.png``, ``.svg`` or ``.pdf``, no place for a file, or no matplotlib.
    """
    if path.suffix not in SUFFIXES or not path.parent.is_dir():
        raise InputError(
            f"Cannot draw {str(path)!r}: it must be a {', '.join(SUFFIXES)} file in an existing folder.",
            fix="",
            assurance="Nothing was drawn.",
        )
    written_file(path)
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "Drawing needs matplotlib: pip install 'l0compress[plot]'.", fix="", assurance="Nothing was drawn."
        )


def _draw(report: BenchReport, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(report.file_bytes)
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        timings = [report.timing(name, size) for size in report.batch_sizes]
        places = [group + (index - (len(names) - 1) / 2) * width for group in range(len(timings))]
        medians = [timing.median_ms for timing in timings]
        above = [timing.p95_ms - timing.median_ms for timing in timings]
        bars = axes.bar(places, medians, width, label=name, yerr=([0.0] * len(above), above), ecolor="0.5", capsize=2)
        axes.bar_label(bars, [f"{median:.3g}" for median in medians], fontsize=7, padding=2)
    axes.set_xticks(range(len(report.batch_sizes)), [f"batch {size}" for size in report.batch_sizes])
    axes.set_yscale("log")
    axes.set_ylabel("median latency in ms (whisker: p95)")
    axes.set_title(f"Latency with {report.threads} thread{'s' if report.threads != 1 else ''}, models taking turns")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
