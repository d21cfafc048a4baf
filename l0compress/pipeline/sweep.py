"""A grid over targets, methods and seeds: every trial an ordinary run folder, and one table over all of them.

::

    SWEEP/
      macs=0.5-l0-seed0/        a run folder
      macs=0.5-l0-seed0.log     what its process said
      sweep.json                what came out, trial by trial
      sweep.html, pareto.png    the table; the picture, where matplotlib is installed
      optuna.log                the same trials as a study, where Optuna is installed

requires: the settings that all trials share.
ensures:  a trial that is finished is not run again; one that was stopped goes on where it was.
"""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from l0compress.errors import InputError, RunError, TargetError
from l0compress.graph.groups.cost import Cost
from l0compress.measure.pareto import Point, Tradeoff
from l0compress.measure.table import Table
from l0compress.pipeline import runs
from l0compress.pipeline.config import complete, config_text, read_config
from l0compress.pipeline.durable import write_durably
from l0compress.pipeline.options import OPTIONS
from l0compress.pipeline.requests import request_of
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.training.settings import METHOD_NAMES
from l0compress.training.targets import Target

RESULTS, PAGE, PICTURE = "sweep.json", "sweep.html", "pareto.png"
VARIED = ("target", "method", "seed")
# These may differ from one call to the next: a trial computes the same with any of them, or keeps its own.
_UNITS = ("macs", "params")
_FREE = ("threads", "checkpoint_every")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    target: Target
    method: str
    seed: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.target}-{self.method}-seed{self.seed}"

    @property
    def setup(self) -> str:
        """What its seeds have in common."""
        return f"{self.target} {self.method}"

    def values(self) -> dict[str, Any]:
        """As values of a configuration file."""
        return {"target": str(self.target), "method": self.method, "seed": self.seed}


@dataclass(frozen=True)
class Sweep:
    """A grid and where it goes.

    Attributes:
        folder: new, or that of the same sweep.
        shared: the settings of all trials, by their names in a configuration file.
        trials: in the order in which they are begun.
    """

    folder: Path
    shared: Mapping[str, Any]
    trials: tuple[Trial, ...]

    def values(self, trial: Trial) -> dict[str, Any]:
        """Every setting of a trial."""
        return complete({**self.shared, **trial.values()})

    def run_of(self, trial: Trial) -> Path:
        """The trial's run folder."""
        return self.folder / trial.name

    def is_finished(self, trial: Trial) -> bool:
        """Whether the trial has a result."""
        folder = self.run_of(trial)
        return runs.is_run(folder) and read_manifest(folder).finished

    def check(self) -> None:
        """Refuse what cannot be run before anything is.

        Raises:
            InputError: a setting is wrong.
            RunError: a trial in the folder had other settings.
        """
        for trial in self.trials:
            wanted = request_of(self.values(trial)).values()
            folder = self.run_of(trial)
            if not runs.is_run(folder):
                continue
            began = complete(read_config(folder / runs.CONFIG))
            for name, value in wanted.items():
                if name not in _FREE and value != began.get(name):
                    raise RunError(
                        f"Trial {str(folder)!r} has {OPTIONS[name].place} = {began.get(name)!r}, but {value!r} was "
                        "requested.",
                        fix="Ask for what the sweep began with, or choose another folder with --output.",
                    )


def grid(targets: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Every target with every method and every seed, one seed after another: all setups have results soon.

    >>> [trial.name for trial in grid(["macs=0.5"], ["l0", "fisher"], [0, 1])]
    ['macs=0.5-l0-seed0', 'macs=0.5-fisher-seed0', 'macs=0.5-l0-seed1', 'macs=0.5-fisher-seed1']

    Raises:
        TargetError: a target is malformed.
        InputError: there is no such method, or nothing of a kind.
    """
    unknown = [method for method in methods if method not in METHOD_NAMES]
    if unknown:
        raise InputError(
            f"--methods {unknown[0]!r}: there is no such method.", fix=f"The methods are {', '.join(METHOD_NAMES)}."
        )
    parsed = [Target.of(text) for text in targets]
    if not (parsed and methods and seeds):
        raise InputError("A sweep needs a target, a method and a seed at least.", fix="Pass --targets macs=0.5,0.25.")
    return tuple(dict.fromkeys(Trial(target, method, seed) for seed, target, method in product(seeds, parsed, methods)))


def parse_list(text: str, flag: str) -> list[str]:
    """The parts of a list with commas.

    Raises:
        InputError: one of them is empty.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"{flag} {text!r} has an empty part.", fix=f"Separate values by single commas: {flag} a,b.")
    return parts


def parse_targets_list(text: str) -> list[str]:
    """Targets with commas; a number without a unit has the unit before it.

    >>> parse_targets_list("macs=0.5,0.25,params=0.5")
    ['macs=0.5', 'macs=0.25', 'params=0.5']
    """
    unit, found = "", []
    for part in parse_list(text, "--targets"):
        before, equals, _ = part.partition("=")
        unit = before if equals else unit
        if not unit:
            raise TargetError(f"--targets {text!r} begins without a unit.", fix="Write for example macs=0.5,0.25.")
        found.append(part if equals else f"{unit}={part}")
    return found


def parse_seeds(text: str) -> list[int]:
    """Seeds with commas.

    Raises:
        InputError: one is no whole number from 0 on.
    """
    parts = parse_list(text, "--seeds")
    wrong = [part for part in parts if not (part.isascii() and part.isdigit())]
    if wrong:
        raise InputError(f"--seeds {text!r}: {wrong[0]!r} is no seed.", fix="Write whole numbers: --seeds 0,1,2.")
    return [int(part) for part in parts]


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
        write_durably(self.folder / RESULTS, runs.json_bytes(self.to_json()))
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
        name, higher = runs.metric_name(run.result, reading), reading is None or reading.counts_hits
        found.append(_outcome(trial, run.result))
    return SweepResult(sweep.folder, tuple(found), name, higher, failed)


def _outcome(trial: Trial, result: Mapping[str, Any]) -> Outcome:
    dense, small = ((result["test"] or result["val"])[which]["metric"] for which in ("dense", "small"))
    return Outcome(trial, small, dense, Cost(**(result["nonzero"] or result["small"])), Cost(**result["dense"]))


def trial_config(sweep: Sweep, trial: Trial, threads: int | None) -> str:
    """The configuration file of a trial; one that goes on has its own number of threads."""
    begun = runs.is_run(sweep.run_of(trial))
    values = sweep.values(trial)
    return config_text({**values, "threads": None if begun else values["threads"] or threads})


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
