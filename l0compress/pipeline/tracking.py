"""The curves of a run in trackers that people look at already, through those of Accelerate.

requires: events of a run, in the first of its processes.
ensures:  each tracker gets the settings once, then loss, score, density and rates by step; a run that goes on adds to
          the same log. No tracker can end a run: one that fails is left out from there on, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from l0compress.errors import InputError, did_you_mean
from l0compress.graph.capture import USER_CODE_ERRORS
from l0compress.loading.references import import_extra, import_reference
from l0compress.pipeline.curves import is_logged, named_for, outcome, plain, scalars, step_of
from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.options import OPTIONS, TRACKERS
from l0compress.pipeline.runs import default_folder
from l0compress.training.events import OnEvent, ProgressEvent, warning
from l0compress.training.processes import joined
from l0compress.training.settings import FinetuneSettings

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "l0compress"
# Where a manifest says what trackers call the run.
_NOTED = "trackers"


@dataclass(frozen=True)
class Log:
    """What trackers have to know of the run whose curves they draw.

    Attributes:
        folder: where trackers that write files put them; its name is that of the run.
        settings: what the run was asked to do.
        known: what the run was called by each tracker that has had its settings already.
        note: remembers that for the time when the run goes on.
    """

    folder: Path
    settings: Mapping[str, Any]
    known: Mapping[str, str] = field(default_factory=dict)
    note: Callable[[Mapping[str, str]], None] | None = None

    @classmethod
    def of(cls, run: LivingRun, settings: Mapping[str, Any]) -> Log:
        """That of a run folder, which remembers what the run is called."""

        def note(known: Mapping[str, str]) -> None:
            run.note_(**{_NOTED: known})

        return cls(run.folder, settings, run.manifest.about.get(_NOTED, {}), note)


class Trackers:
    """Those that one run was asked to log to; maybe none."""

    def __init__(self, names: tuple[str, ...], log: Log, on_event: OnEvent) -> None:
        self._names, self._log, self._on_event = names, log, on_event
        self._started: dict[str, GeneralTracker] | None = None
        self._step, self._known = 0, dict(log.known)

    def hear(self, event: ProgressEvent) -> None:
        """Hand an event on, to the listener and as numbers to the trackers."""
        self._on_event(event)
        if is_logged(event):
            self._step = step_of(event)
            # The members of a family count their steps anew, and no step of another is to go.
            self._log_all(scalars(event), again_from=None if event.member else self._step)

    def conclude(self, result: Mapping[str, Any], *, member: str = "") -> None:
        """Log what came out, given as a run's ``result.json`` has it."""
        self._log_all(named_for(outcome(result), member))

    def close(self) -> None:
        """Let every tracker write what it still holds."""
        self._each(lambda tracker: tracker.finish())
        self._started = None

    def _log_all(self, values: Mapping[str, float], *, again_from: int | None = None) -> None:
        if self._started is None:
            self._start(again_from)
        if values:
            self._each(lambda tracker: tracker.log(dict(values), step=self._step))

    def _start(self, again_from: int | None) -> None:
        self._started = {}
        for name in self._names:
            try:
                tracker = made(name, self._log, again_from=again_from)
                tracker.start()
                if name not in self._known:
                    tracker.store_init_configuration(plain(self._log.settings))
                self._started[name], self._known[name] = tracker, _called(name, tracker)
            except USER_CODE_ERRORS as error:
                self._leave_out(name, error)
        if self._log.note is not None and self._known != self._log.known:
            self._log.note(dict(self._known))

    def _each(self, act: Callable[[GeneralTracker], object]) -> None:
        for name, tracker in list((self._started or {}).items()):
            try:
                act(tracker)
            except USER_CODE_ERRORS as error:
                (self._started or {}).pop(name)
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: BaseException) -> None:
        reason = (str(error).strip().splitlines() or ["no reason"])[0]
        message = f"Tracker {name!r} failed ({type(error).__name__}: {reason}). The run goes on without it."
        self._on_event(warning(message, RuntimeWarning))


@contextmanager
def tracking(names: tuple[str, ...], log: Log, on_event: OnEvent) -> Iterator[Trackers]:
    """The trackers of a run while it is under way."""
    trackers = Trackers(names, log, on_event)
    try:
        yield trackers
    finally:
        trackers.close()


@contextmanager
def tracking_call(
    names: tuple[str, ...], target: object, settings: FinetuneSettings, on_event: OnEvent
) -> Iterator[Trackers]:
    """The trackers of a call in Python that keeps no run: their files have a folder of their own under ``runs``."""
    if not joined().is_first:
        names = ()
    with tracking(names, Log(default_folder("compress"), {"target": target, **asdict(settings)}), on_event) as trackers:
        yield trackers


def trackers_of(track: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers that an argument names.

    Raises:
        InputError: as :func:`check_trackers`.
    """
    names = (track,) if isinstance(track, str) else tuple(track)
    check_trackers(names)
    return names


def check_trackers(names: tuple[str, ...]) -> None:
    """Check that trackers are there, before anything is computed.

    Raises:
        InputError: Accelerate or the library of a tracker is not installed, or a tracker of the user's own cannot be
            imported.
    """
    for name in names:
        expected = OPTIONS["track"].wrong(name)
        if expected is not None:
            raise InputError(f"--track {name}: expected {expected}.", fix=did_you_mean(name, TRACKERS))
        import_extra("accelerate", extra="distributed", purpose=f"--track {name}")
        from accelerate.tracking import get_available_trackers

        if ":" in name:
            import_reference(name, flag="--track")
        elif name not in [str(kind) for kind in get_available_trackers()]:
            raise InputError(
                f"--track {name} needs {name}, which is not installed.", fix=f"Install it: pip install {name}."
            )


def made(name: str, log: Log, *, again_from: int | None = None) -> GeneralTracker:
    """A tracker that goes on with the log of the run, where it has one.

    Args:
        name: one of :data:`~l0compress.pipeline.options.TRACKERS`, or ``package.module:function`` of (name of the run,
            folder).
        again_from: the last step that does not come again, where the run goes on with a log; None leaves all that is
            in it.

    Raises:
        InputError: a function of the user's own returns no tracker of Accelerate's.
    """
    from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

    run, known = log.folder.name, log.known.get(name)
    if name == "tensorboard":
        # What was logged after the state that the run goes on from comes again, and is not to stand there twice.
        purged = {} if known is None or again_from is None else {"purge_step": again_from + 1 if again_from else 0}
        return TensorBoardTracker(name, logging_dir=log.folder, **purged)
    if name == "mlflow":
        return MLflowTracker(PROJECT, run_id=known, run_name=run)
    if name == "wandb":
        return WandBTracker(PROJECT, name=run, id=known or uuid4().hex, resume="allow", dir=str(log.folder))
    tracker = import_reference(name, flag="--track")(run, log.folder)
    if not isinstance(tracker, GeneralTracker):
        raise InputError(
            f"--track {name} returned {type(tracker).__name__}, which is not a GeneralTracker of Accelerate's.",
            fix="Derive it from accelerate.tracking.GeneralTracker.",
        )
    return tracker


def _called(name: str, tracker: Any) -> str:
    """What a tracker that keeps its logs elsewhere calls the run."""
    if name == "mlflow":
        return tracker.tracker.info.run_id
    return tracker.tracker.id if name == "wandb" else ""
