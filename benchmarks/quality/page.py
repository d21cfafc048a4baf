"""docs/quality.md: a table for each task, what was wanted, and where learned gates are behind."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from l0compress.measure.table import Table
from quality.cells import DENSE, RIVALS
from quality.plot import write_plot
from quality.problem import CALIBRATION_SAMPLES, Score, Task
from quality.published import PUBLISHED
from quality.records import Row
from quality.summary import Duel, Summary, dense_for, duels, summaries
from quality.wanted import WANTED, checked

HEAD = """# How good compressed models are

Written by `make bench-quality`: every method gets the same dense model, data, budget and number of epochs, and
otherwise the defaults. Every choice is made on the validation part; what is quoted is the model of the last epoch, and
the test part is read once for it. Mean over seeds, with the least and the most in brackets. *dense* is the model that
goes in, as it is and trained on for as many epochs as the compressed ones get (labels alone, same optimizer, schedule
and rate). Runs of 0 epochs get {samples} samples without labels, chosen by the seed, for everything they do. Seconds
are means over seeds, on {processor}, with those of the processor in brackets, since other work may have run
beside; *threads x jobs* is what a run had and how many of the benchmark ran beside each other.

![score over budget](quality.svg)
"""
EARLIER = """**{earlier} of the {rows} runs behind this page were made by an earlier version of the code**
(`--any-version`).
"""
RIVALS_HEAD = """## Learned gates against other projects

`make bench-quality RIVALS=all` gives other projects the same. Torch-Pruning cuts the module by one of its group scores,
with gradients on {samples} labelled samples where the score wants them. Its ratio is turned until the budget is met; of
its uniform and its global ranking the one that is better in validation is trained, by the trainer, teacher and settings
of `--method magnitude`. It leaves a model's inputs whole, which ours may cut. onnxsim gets the ONNX file and the
{samples} samples, without labels, cuts by its calibrated structured pruning, and solves the layers that are left by its
ridge regression, which leaves out convolutions, and layers that lost inputs and outputs alike. What is left is captured
and counted as ours is.
"""
COLUMNS = (
    "budget",
    "epochs",
    "method",
    "seeds",
    "reached",
    "validation",
    "test",
    "against dense",
    "s (CPU)",
    "threads x jobs",
)


def write_page(tasks: Mapping[str, Task], rows: Sequence[Row], folder: Path, *, earlier: int = 0) -> str:
    """Write ``quality.md`` and ``quality.svg``; returns the text.

    Args:
        earlier: how many of the rows come from another version of what decides the numbers.
    """
    found = summaries(rows)
    measured = [task for name, task in tasks.items() if any(one.setting.task == name for one in found)]
    parts = [HEAD.format(samples=CALIBRATION_SAMPLES, processor=processor())]
    parts += [EARLIER.format(earlier=earlier, rows=len(rows)) if earlier else ""]
    parts += [_wanted(tasks, found), _against(measured, found), _against_projects(measured, found)]
    parts += [_section(task, [one for one in found if one.setting.task == task.name]) for task in measured]
    text = "\n".join(part for part in parts if part)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.md").write_text(text, encoding="utf-8")
    write_plot(measured, found, folder / "quality.svg")
    return text


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _wanted(tasks: Mapping[str, Task], found: Sequence[Summary]) -> str:
    wanted = [checked(want, found, tasks[want.task].score) for want in WANTED if want.task in tasks]
    checks = [check for check in wanted if check is not None]
    if not checks:
        return ""
    lines = [f"- {words}{'' if holds else ' **missed**'}" for words, holds in checks]
    return "## What was wanted of learned gates\n\n" + "\n".join(lines) + "\n"


def _against(tasks: Sequence[Task], found: Sequence[Summary]) -> str:
    fought = [(duel, task.score) for task in tasks for duel in duels(found, task.score, task.name)]
    return "" if not fought else f"## Learned gates against the other methods\n\n{_outcome(fought)}"


def _against_projects(tasks: Sequence[Task], found: Sequence[Summary]) -> str:
    if not any(one.setting.method in RIVALS for one in found):
        return ""
    fought = [
        (duel, task.score) for task in tasks for duel in duels(found, task.score, task.name, of_other_projects=True)
    ]
    head = RIVALS_HEAD.format(samples=CALIBRATION_SAMPLES)
    return head if not fought else f"{head}\n{_outcome(fought)}"


def _outcome(fought: Sequence[tuple[Duel, Score]]) -> str:
    ahead = [duel for duel, _ in fought if duel.lead >= 0]
    clear = [duel for duel in ahead if duel.clear]
    counts = f"in {len(ahead)} of {len(fought)} cells, in {len(clear)} of them by more than the seeds differ"
    behind = [_behind(duel, score) for duel, score in fought if duel.lead < 0]
    lines = [f"At or ahead of the best of the others {counts}."]
    return "\n".join([*lines, *(["", "Behind in:", "", *behind] if behind else []), ""])


def _behind(duel: Duel, score: Score) -> str:
    setting = duel.ours.setting
    return (
        f"- {setting.task}, {setting.budget:,} {setting.unit}, {setting.epochs} epochs: {score.name} "
        f"{duel.ours.test:.{score.digits}f} against {duel.rival.test:.{score.digits}f} of {duel.rival.setting.method}, "
        f"{duel.doubt}"
    )


def _section(task: Task, found: Sequence[Summary]) -> str:
    dense = [one for one in found if one.setting.method == DENSE]
    others = [one for one in found if one.setting.method != DENSE]
    # Whole budgets together, from the largest; methods stay in their order.
    others.sort(key=lambda one: (one.setting.granularity, -one.setting.budget, one.setting.epochs))
    rows = [_row(one, None, task.score) for one in sorted(dense, key=lambda one: one.setting.epochs)]
    before: tuple[str, float] | None = None
    for one in others:
        place = (one.setting.granularity, one.setting.budget)
        if place != before:
            rows += _published(task, one)
        before = place
        rows.append(_row(one, dense_for(found, task.name, one.setting.epochs), task.score))
    table = Table("", COLUMNS, tuple(rows)).to_markdown()
    return f"## {task.title}\n\n{task.about} Score: {task.score.name}.\n\n{table}\n"


def _published(task: Task, one: Summary) -> list[tuple[str, ...]]:
    row = PUBLISHED.get((task.name, one.setting.budget))
    if row is None:
        return []
    blank = ("",) * 4
    return [
        (f"{row.params:,}", "", f"*{row.method}, published: {row.left}*", "", "", "", f"{row.error:.2f}", *blank[:3])
    ]


def _row(one: Summary, dense: Summary | None, score: Score) -> tuple[str, ...]:
    setting, digits = one.setting, score.digits
    weights = " of weights" if setting.granularity == "weights" else ""
    budget = "" if setting.method == DENSE else f"{setting.budget:,}"
    used = {f"{row.threads} x {row.jobs}" for row in one.rows}
    return (
        budget,
        str(setting.epochs),
        setting.method + weights,
        str(len(one.rows)),
        ", ".join(sorted({_reached(row) for row in one.rows})),
        f"{mean(row.val for row in one.rows):.{digits}f}",
        one.spread(digits),
        "" if dense is None else f"{one.test - dense.test:+.{digits}f}",
        f"{mean(row.seconds for row in one.rows):.0f} ({mean(row.cpu_seconds for row in one.rows):.0f})",
        ", ".join(sorted(used)),
    )


def _reached(row: Row) -> str:
    if row.cell.method == DENSE:
        return f"{row.params:,} params"
    return f"{row.params:,}" if row.cell.budget > 1 else f"{row.reached:.3f}"
