"""Bench reports as pictures: latency by batch size, and score against latency and size, on logarithmic scales."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from l0compress.errors import InputError
from l0compress.export.files import staged, written_file
from l0compress.measure.bench import BenchReport
from l0compress.measure.pareto import FILE, Tradeoff

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
# How the names of forms end that are more than the float file.
INT8, BUNDLE = " int8", " bundle"


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


def plot_tradeoff(tradeoff: Tradeoff, path: str | Path, *, title: str = "") -> Path:
    """Draw score over latency at each batch size, and over file size, with the front that no form beats.

    References are marked by squares, int8 forms by hollow marks, bundles by triangles.

    Raises:
        InputError: as :func:`check_picture` says.
    """
    path = Path(path)
    check_picture(path)
    with staged(path) as staging:
        _draw_tradeoff(tradeoff, staging, title)
    return path


def draw_tradeoff(tradeoff: Tradeoff, path: Path, *, title: str = "") -> bytes | None:
    """As :func:`plot_tradeoff`, where matplotlib is installed; returns the same picture as SVG, for a page."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    plot_tradeoff(tradeoff, path, title=title)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "drawn.svg")
        _draw_tradeoff(tradeoff, drawn, title)
        return drawn.read_bytes()


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


def _draw_tradeoff(tradeoff: Tradeoff, path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(tradeoff.axes), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tradeoff.axes), sharey=True, squeeze=False)[0]
    for axes, axis in zip(panels, tradeoff.axes, strict=True):
        _draw_panel(axes, tradeoff, axis)
    panels[0].set_ylabel(tradeoff.score_name)
    if not tradeoff.higher_is_better:
        panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw_panel(axes: Axes, tradeoff: Tradeoff, axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    scale = 1000 if axis == FILE else 1
    front = [(point.price(axis) / scale, point.score) for point in tradeoff.front(axis)]
    axes.plot(*zip(*front, strict=True), color="0.75", drawstyle="steps-post", zorder=1, label="unbeaten")
    models = list(
        dict.fromkeys(_model(point.name) for point in tradeoff.points if point.name not in tradeoff.references)
    )
    for point in tradeoff.points:
        reference = point.name in tradeoff.references
        marker = "s" if reference else "^" if point.name.endswith(BUNDLE) else "o"
        color = "black" if reference else f"C{models.index(_model(point.name)) % 10}"
        axes.scatter(
            point.price(axis) / scale, point.score, marker=marker, s=46, zorder=2, label=point.name,
            edgecolors=color, facecolors="white" if point.name.endswith(INT8) else color,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title("file size" if axis == FILE else axis, fontsize=10)
    axes.set_xlabel(
        "kB"
        if axis == FILE
        else axis
        if axis in tradeoff.points[0].counts
        else f"median latency in ms, threads: {tradeoff.threads}"
    )
    axes.grid(True, color="0.93", zorder=0)


def _model(form: str) -> str:
    """What a form is one of: several of them have one colour."""
    return form.removesuffix(INT8).removesuffix(BUNDLE)


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
