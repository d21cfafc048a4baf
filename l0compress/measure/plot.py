"""Bench reports as pictures: latency by batch size, and score against latency and size. Axes are linear and begin at
zero, so that twice as long is twice as long."""

from __future__ import annotations

import importlib.util
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from l0compress.errors import InputError
from l0compress.export.files import staged, written_file
from l0compress.measure.bench import BenchReport
from l0compress.measure.page.placing import Box, placed
from l0compress.measure.pareto import FILE, Tradeoff
from l0compress.measure.report import in_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
# How the names of forms end that are more than the float file.
INT8, BUNDLE = " int8", " bundle"
_DPI, _PANELS_A_ROW = 150, 2
_NAME_SIZE, _GAP_POINTS = 8, 6.0


def plot_latency(report: BenchReport, path: str | Path) -> Path:
    """Draw a report: a panel for each batch size with a scale of its own, and in it a bar for each candidate.

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

    Every form is named beside its mark. References are marked by squares, int8 forms by hollow marks, bundles by
    triangles.

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

    columns = min(len(tradeoff.axes), _PANELS_A_ROW)
    rows = -(-len(tradeoff.axes) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.4 * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, axis in zip(panels, tradeoff.axes, strict=False):
        _draw_panel(axes, tradeoff, axis)
    for unused in panels[len(tradeoff.axes) :]:
        unused.set_axis_off()
    if title:
        figure.suptitle(title)
    # Names are placed where the layout has put the marks, and the layout stays as it is from then on.
    figure.canvas.draw()
    figure.set_layout_engine("none")
    for axes, axis in zip(panels, tradeoff.axes, strict=False):
        _name_marks(axes, tradeoff, axis)
    figure.savefig(path, dpi=_DPI)


def _draw_panel(axes: Axes, tradeoff: Tradeoff, axis: str) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    scale = _scale(axis)
    front = [(point.price(axis) / scale, point.score) for point in tradeoff.front(axis)]
    axes.plot(*zip(*front, strict=True), color="0.75", drawstyle="steps-post", zorder=1)
    models = list(
        dict.fromkeys(_model(point.name) for point in tradeoff.points if point.name not in tradeoff.references)
    )
    for point in tradeoff.points:
        reference = point.name in tradeoff.references
        marker = "s" if reference else "^" if point.name.endswith(BUNDLE) else "o"
        color = "0.25" if reference else f"C{models.index(_model(point.name)) % 10}"
        axes.scatter(
            point.price(axis) / scale, point.score, marker=marker, s=46, zorder=3,
            edgecolors=color, facecolors="white" if point.name.endswith(INT8) else color,
        )  # fmt: skip
    axes.set_xlim(0, 1.12 * max(point.price(axis) for point in tradeoff.points) / scale)
    axes.margins(y=0.18)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_title("file size" if axis == FILE else axis, fontsize=10)
    milliseconds = f"median latency in ms, threads: {tradeoff.threads}"
    axes.set_xlabel("kB" if axis == FILE else axis if axis in tradeoff.points[0].counts else milliseconds)
    axes.set_ylabel(tradeoff.score_name)
    if not tradeoff.higher_is_better:
        axes.invert_yaxis()
    axes.grid(True, color="0.93", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name_marks(axes: Axes, tradeoff: Tradeoff, axis: str) -> None:
    """Write the name of each form where it covers neither another name nor a mark, with a thin line if that is far."""
    # A line to a name must not move the axes on which it was placed.
    axes.autoscale(False)
    texts = [
        axes.text(0, 0, point.name, transform=axes.transAxes, fontsize=_NAME_SIZE, va="bottom", zorder=4)
        for point in tradeoff.points
    ]
    height = axes.figure.bbox.height
    places = [axes.transData.transform((point.price(axis) / _scale(axis), point.score)) for point in tradeoff.points]
    marks = [(float(x), height - float(y)) for x, y in places]
    sizes = [(box.width + 2, box.height) for box in (text.get_window_extent() for text in texts)]
    inside = Box(axes.bbox.x0, height - axes.bbox.y1, axes.bbox.x1, height - axes.bbox.y0)
    gap = _GAP_POINTS * axes.figure.dpi / 72
    boxes = placed(marks, sizes, inside=inside, gap=gap, avoid=_front_boxes(axes, tradeoff, axis, height))
    for text, (x, y), box in zip(texts, marks, boxes, strict=True):
        # As a share of the panel, since a picture of lines has other pixels than the ones counted here.
        across, up = axes.transAxes.inverted().transform((box.left, height - box.bottom))
        text.set_position((float(across), float(up)))
        near = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if (near[0] - x) ** 2 + (near[1] - y) ** 2 > (2 * gap) ** 2:
            ends = axes.transData.inverted().transform([(x, height - y), (near[0], height - near[1])])
            axes.plot(ends[:, 0], ends[:, 1], color="0.6", linewidth=0.6, zorder=2)


def _front_boxes(axes: Axes, tradeoff: Tradeoff, axis: str, height: float) -> list[Box]:
    """The straight pieces of the front's steps, as boxes in pixels from the top."""
    corners: list[tuple[float, float]] = []
    for point in tradeoff.front(axis):
        x, y = axes.transData.transform((point.price(axis) / _scale(axis), point.score))
        if corners:
            corners.append((float(x), corners[-1][1]))
        corners.append((float(x), height - float(y)))
    return [
        Box(min(x, other_x) - 1, min(y, other_y) - 1, max(x, other_x) + 1, max(y, other_y) + 1)
        for (x, y), (other_x, other_y) in pairwise(corners)
    ]


def _scale(axis: str) -> float:
    return 1000 if axis == FILE else 1


def _model(form: str) -> str:
    """What a form is one of: several of them have one colour."""
    return form.removesuffix(INT8).removesuffix(BUNDLE)


def _draw(report: BenchReport, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, sizes = list(report.file_bytes), report.batch_sizes
    width, height = 4.2 * min(len(sizes), _PANELS_A_ROW), 0.9 + 0.34 * len(names)
    rows = -(-len(sizes) // _PANELS_A_ROW)
    figure = Figure(figsize=(max(width, 6.0), max(height, 2.2) * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, min(len(sizes), _PANELS_A_ROW), squeeze=False, sharey=True).flat)
    for axes, size in zip(panels, sizes, strict=False):
        _draw_bars(axes, report, names, size)
    for unused in panels[len(sizes) :]:
        unused.set_axis_off()
    threads = f"{report.threads} thread{'s' if report.threads != 1 else ''}"
    figure.suptitle(f"Latency with {threads}, models taking turns", fontsize=11)
    figure.supxlabel("milliseconds: the median, and in brackets what 95 % of the calls take at most", fontsize=9)
    figure.savefig(path, dpi=_DPI)


def _draw_bars(axes: Axes, report: BenchReport, names: list[str], size: int) -> None:
    """Lying bars, since names are long, with the numbers behind them."""
    from matplotlib.ticker import MaxNLocator

    timings = [report.timing(name, size) for name in names]
    places, medians = range(len(names)), [timing.median_ms for timing in timings]
    bars = axes.barh(places, medians, 0.68, color=[_colour(name) for name in names])
    said = [f"{in_ms(timing.median_ms)}  (95 %: {in_ms(timing.p95_ms)})" for timing in timings]
    axes.bar_label(bars, said, fontsize=8, padding=4)
    # Room for the numbers behind the longest bar.
    axes.set_xlim(0, 1.65 * max(medians))
    axes.set_yticks(places, names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(f"batch {size}", fontsize=10)
    axes.grid(True, axis="x", color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(name: str) -> str:
    return "0.62" if name.startswith("dense") else "C0"
