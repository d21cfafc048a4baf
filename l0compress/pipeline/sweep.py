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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from l0compress.errors import InputError, RunError, TargetError
from l0compress.pipeline import runs
from l0compress.pipeline.config import complete, config_text, read_config
from l0compress.pipeline.options import OPTIONS
from l0compress.pipeline.requests import request_of, settings_in
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.training.settings import METHOD_NAMES
from l0compress.training.targets import Target

VARIED = ("target", "method", "seed")
# These may differ from one call to the next: a trial computes the same with any of them, or keeps its own.
_FREE = ("threads", "checkpoint_every", "track")


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
            settings_in(self.values(trial))
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


def trial_config(sweep: Sweep, trial: Trial, threads: int | None) -> str:
    """The configuration file of a trial; one that goes on has its own number of threads."""
    begun = runs.is_run(sweep.run_of(trial))
    values = sweep.values(trial)
    return config_text({**values, "threads": None if begun else values["threads"] or threads})
