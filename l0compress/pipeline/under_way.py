"""A run folder under way, whatever is made in it: begun or gone on with, its input checked, its log kept, stopped well.

requires: what to do once the folder is held and model and data are there.
ensures:  a run that can be resumed from its first moment on, by whatever it is stopped.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from signal import SIGINT
from typing import Any, TypeVar

import torch

from l0compress.errors import DataError, DivergedError, InputError, ProcessesError, RunError
from l0compress.export.pt2 import export_pt2
from l0compress.pipeline import runs
from l0compress.pipeline.asked_again import asked_in_python, stored_request, with_threads
from l0compress.pipeline.compressing import check_device
from l0compress.pipeline.config import config_text
from l0compress.pipeline.fingerprints import check_same, data_fingerprint, graph_fingerprint
from l0compress.pipeline.following import FollowedRun, Opened
from l0compress.pipeline.holding import begin_run, check_new, missing_parents, remove_run, reopen_run
from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.machine import machine
from l0compress.pipeline.requests import RunRequest, request_of
from l0compress.pipeline.sources import Prepared, prepare
from l0compress.pipeline.stops import Stops, listening, stopped
from l0compress.pipeline.tracking import Log, Trackers, check_trackers, tracking
from l0compress.pipeline.work import Work
from l0compress.progress import tell
from l0compress.training.events import OnEvent, ignore
from l0compress.training.processes import Processes, joined, processes_for
from l0compress.workers import is_lost_worker

Outcome = TypeVar("Outcome")


Do = Callable[[Work], Outcome]
About = Callable[[RunRequest, Prepared], Mapping[str, Any]]


def _nothing(request: RunRequest, prepared: Prepared) -> Mapping[str, Any]:
    del request, prepared
    return {}


def begun(request: RunRequest, do: Do[Outcome], *, on_event: OnEvent, about: About = _nothing) -> Outcome:
    """Begin a run: its folder holds what it was asked to do and the model, then ``do`` goes on.

    Args:
        about: what the manifest says besides; it may refuse what was asked for.

    Raises:
        InputError: something that was asked for is wrong; nothing was computed or written.
        StoppedError: Ctrl-C or SIGTERM came; the run is kept.
        What ``do`` raises; the run is kept.
    """
    processes = processes_for(request.finetune_settings().device)
    on_event = processes.listener(on_event)
    if not processes.is_first:
        return _followed(request, do, processes, about=about)
    folder = runs.default_folder(request.source.path.stem) if request.output is None else Path(request.output)
    check_new(folder)
    check_trackers(request.track)
    request = with_threads(request)
    prepared = _prepared(request)
    told = {} if request.given is None else {runs.GIVEN: request.given.told()}
    began_with = {**_fingerprints(prepared), "versions": _versions(), **told, **about(request, prepared)}
    made = missing_parents(folder)
    with begin_run(folder, began_with) as run, _kept(run) as stops:
        try:
            run.begin_({runs.CONFIG: config_text(request.values()).encode()}, _dense_of(prepared))
            processes.say(Opened(folder, run.manifest, request.values()))
            with tracking(request.track, Log.of(run, request.values()), on_event) as trackers:
                return do(Work(run, request, prepared, stops, trackers, processes))
        except InputError as error:
            # What is wrong with the input is found before the first step; a full disk is nothing of that kind.
            untouched = run.manifest.state is None and run.manifest.files.keys() <= {runs.CONFIG, runs.DENSE}
            if untouched and not isinstance(error, RunError):
                remove_run(folder, made)
            raise


def gone_on_with(
    folder: Path,
    do: Do[Outcome],
    finished: Callable[[LivingRun], Outcome],
    *,
    asked: Mapping[str, Any] | RunRequest | None,
    on_event: OnEvent,
) -> Outcome:
    """Go on with a run where its last checkpoint was taken.

    Args:
        finished: what comes of it where the run is finished already.
        asked: settings by their names in a configuration file, or what Python asks for. Those in ``CHANGEABLE`` may
            differ from what the run began with, and hold from here on; others have to be the same.

    Raises:
        RunError: the folder is no run, is damaged or in use; model or data are not what the run began with, or have to
            be given in Python; or ``asked`` contradicts it.
        StoppedError and what ``do`` raises, as :func:`begun`.
    """
    folder, processes = Path(folder), joined()
    on_event = processes.listener(on_event)
    if not processes.is_first:
        return _followed(asked if isinstance(asked, RunRequest) else None, do, processes)
    with reopen_run(folder) as run:
        if run.manifest.finished:
            if isinstance(asked, RunRequest):
                _check_finished(run, asked)
            outcome = finished(run)
            return processes.say(Opened(folder, run.manifest, {}, outcome)).outcome
        request = _asked_again(run, asked)
        check_trackers(request.track)
        processes.say(Opened(folder, run.manifest, request.values()))
        processes_for(request.finetune_settings().device)
        prepared = _prepared(request)
        check_same(run.manifest.about, _fingerprints(prepared), str(folder))
        with _kept(run) as stops:
            run.log_("resumed", position=run.manifest.position, machine=machine())
            with tracking(request.track, Log.of(run, request.values()), on_event) as trackers:
                return do(Work(run, request, prepared, stops, trackers, processes))


def _check_finished(run: LivingRun, request: RunRequest) -> None:
    """Check that what a finished run came to is what is asked for.

    Raises:
        RunError: model, data or settings are not what the run began with.
    """
    stored_request(run, asked_in_python(run, request), given=request.given)
    check_same(run.manifest.about, _fingerprints(_prepared(request)), str(run.folder))


def _asked_again(run: LivingRun, asked: Mapping[str, Any] | RunRequest | None) -> RunRequest:
    """Raises:
    RunError: what is asked for contradicts the run, or it was given in Python what it is not given now.
    """
    if isinstance(asked, RunRequest):
        return stored_request(run, asked_in_python(run, asked), given=asked.given)
    if runs.GIVEN in run.manifest.about:
        raise RunError(
            f"Run {str(run.folder)!r} was given its model in Python, and has to be given it again.",
            fix=f"Resume it there: {runs.resume_command(run.folder)}.",
        )
    return stored_request(run, asked or {})


def _followed(request: RunRequest | None, do: Do[Outcome], processes: Processes, *, about: About = _nothing) -> Outcome:
    """Take part in a run that the first process begins, or where ``request`` is None goes on with.

    Raises:
        RunError: this process has another model or other data than the first.
    """

    def prepared_for(request: RunRequest) -> Prepared:
        prepared = _prepared(with_threads(request))
        about(request, prepared)
        return prepared

    prepared = None if request is None else prepared_for(request)
    opened: Opened = processes.hear()
    if opened.manifest.finished:
        return opened.outcome
    given = None if request is None else request.given
    request = with_threads(request_of(opened.values, output=opened.folder, given=given))
    prepared = prepared_for(request) if prepared is None else prepared
    run = FollowedRun(opened.folder, opened.manifest)
    check_same(run.manifest.about, _fingerprints(prepared), str(opened.folder))
    trackers = Trackers((), Log.of(run, {}), processes.listener(ignore))  # the first process logs for all
    with _kept(run) as stops:
        return do(Work(run, request, prepared, stops, trackers, processes))


def _prepared(request: RunRequest) -> Prepared:
    if request.given is not None:
        return request.given.prepared
    settings = request.finetune_settings()
    check_device(settings.device)
    dynamic = "batch" if request.fixed else "auto"
    tell("loading the model")
    return prepare(request.source.load(), request.data, loss=settings.loss, dynamic=dynamic)


@contextmanager
def _kept(run: LivingRun) -> Iterator[Stops]:
    """Ctrl-C and SIGTERM stop the run after a step, and what stops it says how to go on."""
    with listening() as stops:
        try:
            yield stops
        except DivergedError as error:
            run.log_("diverged", position=run.manifest.position)
            raise DivergedError(
                f"{error} The last good state is kept: {run.manifest.position}. Resume from there with a lower rate: "
                f"{runs.resume_command(run.folder, lower_rate=True)}"
            ) from error
        except ProcessesError as error:
            if stops.signal is not None:
                raise stopped(run, stops.signal) from error
            run.log_("processes", message=str(error), position=run.manifest.position)
            raise ProcessesError(
                f"{error} The last state is kept{_known(run)}. Resume with: {runs.resume_command(run.folder)}"
            ) from error
        except KeyboardInterrupt as error:
            if not runs.is_run(run.folder):
                raise
            raise stopped(run, stops.signal or SIGINT) from error
        except (RuntimeError, OSError, EOFError) as error:
            # The signal went to the workers of a data loader as well: the loader misses them, or what they were handing
            # over when they died.
            number = stops.behind(error)
            if number is not None:
                raise stopped(run, number) from error
            if not is_lost_worker(error):
                raise
            run.log_("worker", message=str(error), position=run.manifest.position)
            raise DataError(
                f"{str(error).rstrip('. ')}. The last state is kept{_known(run)}. Workers are killed where memory runs "
                "out, that of /dev/shm too: give the loader fewer of them, or smaller batches. Resume with: "
                f"{runs.resume_command(run.folder)}"
            ) from error


def _known(run: LivingRun) -> str:
    """Where the last state stands, which only the process that writes it knows."""
    return "" if isinstance(run, FollowedRun) else f": {run.manifest.position}"


def _fingerprints(prepared: Prepared) -> dict[str, Any]:
    return {"model": graph_fingerprint(prepared.graph), "data": data_fingerprint(prepared.data)}


def _versions() -> dict[str, str]:
    return {
        "l0compress": version("l0compress"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _dense_of(prepared: Prepared) -> Callable[[Path], tuple[str, ...]]:
    def export(folder: Path) -> tuple[str, ...]:
        export_pt2(prepared.graph, folder / runs.DENSE)
        return (runs.DENSE,)

    return export
