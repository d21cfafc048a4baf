"""What a sweep came to: its trials side by side, mean and spread over seeds, and what no other setup beats."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l0compress.graph.groups.cost import Cost
from l0compress.measure.pareto import Point, Tradeoff
from l0compress.measure.table import Table
from l0compress.pipeline import runs
from l0compress.pipeline.durable import write_durably
from l0compress.pipeline.run_result import json_bytes, metric_name
from l0compress.pipeline.sweep import Sweep, Trial

RESULTS, PAGE, PICTURE = "sweep.json", "sweep.html", "pareto.png"
_UNITS = ("macs", "params")


@dataclass(frozen=True)
class Outcome:
    """What a finished trial came to.

    Attributes:
        trial: which one.
        score: on the test part, or on the validation part where there is none.
        dense_score: the dense model's.
        cost: of the small model; without zeros where single weights were removed.
        dense_cost: of the dense model.
    """

    trial: Trial
    score: float
    dense_score: float
    cost: Cost
    dense_cost: Cost


@dataclass(frozen=True)
class SweepResult:
    """Every trial that is finished, and the ends of those that failed.

    Attributes:
        folder: where they are.
        outcomes: of finished trials, in the order of the grid.
        score_name: what the scores are.
        higher_is_better: whether more of it is better.
        failed: the last words of trials that failed, by name.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]
    score_name: str = "score"
    higher_is_better: bool = True
    failed: Mapping[str, str] = field(default_factory=dict)

    def setups(self) -> dict[str, list[Outcome]]:
        """The outcomes of each setup, one for every seed."""
        found: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.trial.setup, []).append(outcome)
        return found

    def tradeoff(self) -> Tradeoff:
        """Mean score against mean cost of every setup, beside the dense model."""
        first = self.outcomes[0]
        dense = Point("dense", first.dense_score, first.dense_cost.bytes, counts=_counts([first.dense_cost]))
        points = [
            Point(
                name,
                _mean(one.score for one in seeds),
                round(_mean(one.cost.bytes for one in seeds)),
                counts=_counts([one.cost for one in seeds]),
            )
            for name, seeds in self.setups().items()
        ]
        return Tradeoff((dense, *points), self.score_name, self.higher_is_better, references=("dense",))

    def table(self) -> Table:
        """One row a setup: mean and spread over its seeds, what is left, and where no other setup beats it."""
        if not self.outcomes:
            return Table("No trial is finished", ("trial", "why"), tuple(self.failed.items()))
        tradeoff, dense = self.tradeoff(), self.outcomes[0].dense_cost
        whole = ("100.0 %", "100.0 %", _front(tradeoff, 0))
        rows: list[tuple[str, ...]] = [("dense", "", f"{tradeoff.points[0].score:.4f}", *whole)]
        for position, (name, seeds) in enumerate(self.setups().items(), start=1):
            scores = [one.score for one in seeds]
            spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
            left = (_share([getattr(one.cost, unit) for one in seeds], getattr(dense, unit)) for unit in _UNITS)
            rows.append((name, str(len(seeds)), f"{_mean(scores):.4f}{spread}", *left, _front(tradeoff, position)))
        notes = ["± is the standard deviation over seeds. Unbeaten: no other row is better without costing more."]
        notes += [f"{name} failed: {why}" for name, why in self.failed.items()]
        columns = ("", "seeds", self.score_name, "macs", "params", "unbeaten at")
        return Table(f"Trials of {self.folder}", columns, tuple(rows), tuple(notes))

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        trials = [
            {**one.trial.values(), "run": one.trial.name, "score": one.score, "small": vars(one.cost)}
            for one in self.outcomes
        ]
        front = self.tradeoff().to_json() if self.outcomes else {}
        return {
            "sweep": str(self.folder),
            "score": self.score_name,
            "trials": trials,
            "failed": dict(self.failed),
            "unbeaten": front,
        }

    def write(self, picture: bytes | None = None) -> None:
        """Write the results and their page; a picture of SVG goes into the page."""
        write_durably(self.folder / RESULTS, json_bytes(self.to_json()))
        write_durably(self.folder / PAGE, _page(self.table(), picture).encode())


def result_of(sweep: Sweep, failed: Mapping[str, str]) -> SweepResult:
    """Read every finished trial.

    Raises:
        RunError: a file of one is damaged.
    """
    found, name, higher = [], "score", True
    for trial in sweep.trials:
        if not sweep.is_finished(trial):
            continue
        run = runs.open_run(sweep.run_of(trial))
        reading = runs.reading_of(run.folder)
        name, higher = metric_name(run.result, reading), reading is None or reading.counts_hits
        found.append(_outcome(trial, run.result))
    return SweepResult(sweep.folder, tuple(found), name, higher, failed)


def _outcome(trial: Trial, result: Mapping[str, Any]) -> Outcome:
    dense, small = ((result["test"] or result["val"])[which]["metric"] for which in ("dense", "small"))
    return Outcome(trial, small, dense, Cost(**(result["nonzero"] or result["small"])), Cost(**result["dense"]))


def _counts(costs: Sequence[Cost]) -> dict[str, float]:
    return {unit: _mean(getattr(cost, unit) for cost in costs) for unit in _UNITS}


def _front(tradeoff: Tradeoff, position: int) -> str:
    return ", ".join(tradeoff.unbeaten(tradeoff.points[position])) or "—"


def _share(counts: Sequence[int], dense: int) -> str:
    return f"{100 * _mean(counts) / dense:.1f} %"


def _mean(numbers: Iterable[float]) -> float:
    listed = list(numbers)
    return math.fsum(listed) / len(listed)


def _page(table: Table, picture: bytes | None) -> str:
    """One page that loads nothing."""
    cells = [table.columns, *table.rows]
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in cells]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    drawn = "" if picture is None else picture[picture.index(b"<svg") :].decode()
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
        "table{border-collapse:collapse;display:block;overflow-x:auto}"
        "td{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}td:first-child{text-align:left}"
        "tr:first-child{font-weight:600}svg{max-width:100%;height:auto}"
    )
    title = html.escape(table.title)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{style}</style>\n<h1>{title}</h1>\n<table>{body}</table>\n{notes}\n{drawn}"
        "</html>\n"
    )
