"""The trials of a sweep, several at a time, each a process with its share of the threads."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from l0compress.errors import NOTHING_WRITTEN, RunError, StoppedError
from l0compress.measure.plot import draw_tradeoff
from l0compress.pipeline import runs
from l0compress.pipeline.stops import NAMES, Stops, listening
from l0compress.pipeline.sweep import Sweep, Trial, trial_config
from l0compress.pipeline.sweep_places import Here, Place, UnderWay
from l0compress.pipeline.sweep_result import PICTURE, SweepResult, result_of
from l0compress.pipeline.sweep_study import Study, study_in

_POLL = 0.1
_LOCK = ".sweep.lock"
OnTrial = Callable[[str], None]


@dataclass
class _Begun:
    """A trial under way."""

    trial: Trial
    process: UnderWay
    began: float = field(default_factory=time.monotonic)


def run_sweep(sweep: Sweep, *, place: Place | None = None, on_trial: OnTrial) -> SweepResult:
    """Run every trial that is not finished, and read what came out.

    Trials run at ``place``, by default one at a time on this machine. ``on_trial`` is told a line for people when a
    trial begins or ends.

    Raises:
        InputError: something that was asked for is wrong; nothing was run.
        RunError: the folder is in use, or a trial in it had other settings.
        StoppedError: Ctrl-C or SIGTERM came: every trial under way has kept its state.
    """
    sweep.check()
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"Cannot write {str(sweep.folder)!r}: {error.strerror}.",
            fix="Choose another folder with --output.",
            assurance=NOTHING_WRITTEN,
        ) from error
    with ExitStack() as stack:
        lock = FileLock(sweep.folder / _LOCK, blocking=False)
        try:
            stack.enter_context(lock)
        except Timeout as error:
            raise RunError(
                f"Sweep {str(sweep.folder)!r} is in use by another process.",
                fix="Wait for it to end, or choose another folder with --output.",
            ) from error
        failed = _Runner(sweep, place or Here(1), on_trial).run()
        result = result_of(sweep, failed)
        result.write(_picture(result))
    return result


def _picture(result: SweepResult) -> bytes | None:
    if not result.outcomes:
        return None
    return draw_tradeoff(result.tradeoff(), result.folder / PICTURE, title=str(result.folder))


class _Runner:
    """Keeps as many processes going as the place takes, until no trial is left."""

    def __init__(self, sweep: Sweep, place: Place, on_trial: OnTrial) -> None:
        self._sweep, self._place, self._tell = sweep, place, on_trial
        self._failed: dict[str, str] = {}
        self._left = [trial for trial in sweep.trials if not sweep.is_finished(trial)]
        self._under_way: list[_Begun] = []

    def run(self) -> dict[str, str]:
        """Run what is left; returns the last words of what failed."""
        study, done = study_in(self._sweep), len(self._sweep.trials) - len(self._left)
        if done:
            self._tell(f"{done} of {len(self._sweep.trials)} trials are finished already")
        for trial in self._sweep.trials:
            study.record(trial)
        with listening() as stops:
            try:
                while (self._left or self._under_way) and stops.signal is None:
                    while self._left and len(self._under_way) < self._place.jobs:
                        self._begin(self._left.pop(0))
                    time.sleep(_POLL)
                    self._collect(study)
            finally:
                self._end_all(stops)
        if stops.signal is not None:
            raise _stopped(self._sweep.folder, stops.signal)
        return self._failed

    def _begin(self, trial: Trial) -> None:
        folder, config = self._sweep.run_of(trial), _config(self._sweep, trial)
        config.write_text(trial_config(self._sweep, trial, self._place.threads), encoding="utf-8")
        arguments = ["-m", "l0compress", "finetune", "--config", str(config), "-o", str(folder), "--resume", "--json"]
        self._tell(f"{'resuming' if runs.is_run(folder) else 'running'} {trial.name}")
        self._under_way.append(_Begun(trial, self._place.begin(arguments, _log(self._sweep, trial))))

    def _collect(self, study: Study) -> None:
        for one in list(self._under_way):
            code = one.process.exit_code()
            if code is None:
                continue
            self._under_way.remove(one)
            _config(self._sweep, one.trial).unlink(missing_ok=True)
            took = f"{time.monotonic() - one.began:.0f} s"
            if code == 0 and self._sweep.is_finished(one.trial):
                study.record(one.trial)
                self._tell(f"finished {one.trial.name} in {took}")
            else:
                self._failed[one.trial.name] = _last_words(_log(self._sweep, one.trial), code)
                self._tell(f"{one.trial.name} failed after {took}: {self._failed[one.trial.name]}")

    def _end_all(self, stops: Stops) -> None:
        """Ask what is under way to keep its state and end. Ctrl-C went to all of the group; SIGTERM to this alone."""
        for one in self._under_way:
            if stops.signal != signal.SIGINT or not self._place.hears_interrupts:
                one.process.stop()
        for one in self._under_way:
            one.process.wait()
            _config(self._sweep, one.trial).unlink(missing_ok=True)


def _config(sweep: Sweep, trial: Trial) -> Path:
    return sweep.folder / f".{trial.name}.toml"


def _log(sweep: Sweep, trial: Trial) -> Path:
    return sweep.folder / f"{trial.name}.log"


def _last_words(log: Path, code: int) -> str:
    if code == 0 or not log.exists():
        return f"exit code {code}, but what it wrote is not here: every node has to see this folder at the same path"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors: Sequence[str] = [line for line in lines if line.startswith("Error: ")] or lines[-1:]
    return errors[-1].removeprefix("Error: ") if errors else f"exit code {code}"


def _stopped(folder: Path, number: int) -> StoppedError:
    name = NAMES.get(signal.Signals(number), "Stopped")
    return StoppedError(
        f"{name}. The sweep is kept in {str(folder)!r}, and every trial under way has kept its state. Go on with the "
        "same command.",
        signal=number,
    )
