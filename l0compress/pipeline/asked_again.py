"""What a run is asked to do when it goes on: what it began with, and the few settings that may change on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from l0compress.errors import RunError
from l0compress.pipeline import runs
from l0compress.pipeline.config import config_text, parse_config, read_config
from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.options import CHANGEABLE, OPTIONS
from l0compress.pipeline.requests import RunRequest, request_of

if TYPE_CHECKING:
    from l0compress.pipeline.given import Given

_CHANGES = "changes"
# What these name is compared itself, by its fingerprint; and threads that nobody asked for are the run's own.
_COMPARED_ITSELF = ("model", "data", "factory", "factory_args", "trust_pickle", "threads", "checkpoint_every")


def stored_request(run: LivingRun, asked: Mapping[str, Any], *, given: Given | None = None) -> RunRequest:
    """What the run was asked to do, with what was changed then and now; the change is noted in the manifest.

    Args:
        asked: settings by their names in a configuration file.
        given: what it is handed in Python.

    Raises:
        RunError: ``asked`` has another value of something that cannot change.
    """
    before = run.manifest.about.get(_CHANGES, {})
    stored = {**read_config(run.folder / runs.CONFIG), **before}
    request = request_of(stored, output=run.folder, given=given)
    values = request.values()
    for name, value in asked.items():
        if (name not in CHANGEABLE or run.manifest.finished) and value != values[name]:
            raise RunError(
                f"Run {str(run.folder)!r} has {OPTIONS[name].place} = {values[name]!r}, but {value!r} was requested.",
                fix=_way_out(run),
            )
    changes = {name: value for name, value in asked.items() if value != values[name]}
    if changes:
        run.note_(**{_CHANGES: {**before, **changes}})
        run.log_("changed", **changes)
    return with_threads(request.changed(changes))


def _way_out(run: LivingRun) -> str:
    if run.manifest.finished:
        return "Leave that as it is, or start a new run in another folder: this one is finished."
    return f"Resume it without that, or start a new run; {', '.join(CHANGEABLE)} may change."


def asked_in_python(run: LivingRun, request: RunRequest) -> dict[str, Any]:
    """The settings of a call that go on with a run: all but what was left as it was when the run began."""
    began = _as_written(read_config(run.folder / runs.CONFIG))
    values = {name: value for name, value in _as_written(request.values()).items() if name not in _COMPARED_ITSELF}
    if request.data is None:
        reading = [name for name, row in OPTIONS.items() if row.panel == OPTIONS["split"].panel]
        values = {name: value for name, value in values.items() if name not in reading}
    return {name: value for name, value in values.items() if name not in CHANGEABLE or value != began[name]}


def _as_written(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a file has them: a tuple there is a list."""
    read = parse_config(config_text(values), name=runs.CONFIG)
    return {name: read.get(name) for name in OPTIONS}


def with_threads(request: RunRequest) -> RunRequest:
    """The number of threads belongs to a run: sums come out differently with another."""
    if request.threads is None:
        return replace(request, threads=torch.get_num_threads())
    torch.set_num_threads(request.threads)
    return request
