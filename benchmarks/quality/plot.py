"""docs/quality.svg: a panel a task, a line a method and number of epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from quality.cells import DENSE, METHODS, RIVALS, STRUCTURED_METHODS
from quality.problem import Task
from quality.published import PUBLISHED
from quality.summary import Summary

ACROSS = 3
OTHERS = tuple(name for name in STRUCTURED_METHODS if name not in METHODS)
# Learned gates and the scores in strong colours, everything else in those that are left.
_MORE = ("black", "gold", "navy", "teal", "magenta", "sienna", "yellowgreen", "crimson", "deepskyblue", "indigo")
COLOURS = {
    name: f"C{number}" if number < 10 else _MORE[number - 10]
    for number, name in enumerate((*METHODS, *OTHERS, *RIVALS))
}
MARKERS = ("o", "s", "^", "v")


def write_plot(tasks: Sequence[Task], found: Sequence[Summary], path: Path) -> None:
    """Mean over seeds, with a bar from the worst to the best; grey lines are the dense model."""
    if not tasks:
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    down = -(-len(tasks) // ACROSS)
    # The same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "quality", "svg.fonttype": "none"}):
        figure, grid = pyplot.subplots(down, ACROSS, figsize=(4.5 * ACROSS, 3.5 * down), squeeze=False)
        panels = list(grid.flat)
        for panel, task in zip(panels, tasks, strict=False):
            _draw(panel, task, [one for one in found if one.setting.task == task.name])
        for panel in panels[len(tasks) :]:
            panel.set_axis_off()
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _draw(panel: Any, task: Task, found: Sequence[Summary]) -> None:
    structured = [one for one in found if one.setting.granularity == "structured"]
    lengths = sorted({one.setting.epochs for one in structured})
    for epochs in lengths:
        style = "-" if epochs == lengths[-1] else "--" if epochs else ":"
        for method, colour in COLOURS.items():
            line = [one for one in structured if (one.setting.method, one.setting.epochs) == (method, epochs)]
            line.sort(key=lambda one: one.setting.budget)
            if line:
                means = [one.test for one in line]
                bars = [[one.test - min(one.tests) for one in line], [max(one.tests) - one.test for one in line]]
                marker = MARKERS[lengths.index(epochs) % len(MARKERS)]
                label = f"{method}, {epochs} epochs"
                places = [one.setting.budget for one in line]
                panel.errorbar(places, means, bars, ls=style, marker=marker, color=colour, ms=4, lw=1.2, label=label)
        dense = [one for one in structured if (one.setting.method, one.setting.epochs) == (DENSE, epochs)]
        for one in dense:
            panel.axhline(one.test, color="grey", ls=style, lw=0.8)
    papers = [row for (name, budget), row in PUBLISHED.items() if name == task.name and _has(structured, budget)]
    if papers:
        panel.plot([row.params for row in papers], [row.error for row in papers], "kx", label="published")
        panel.set_xscale("log")
    unit = task.grid.unit
    panel.set(title=task.title, xlabel=unit if papers else f"share of the {unit}", ylabel=task.score.name)
    if structured:
        panel.legend(fontsize=6)


def _has(found: Sequence[Summary], budget: float) -> bool:
    return any(one.setting.budget == budget for one in found)
