"""What a run is handed in Python: a model and data in memory, where the command line names files.

A run folder keeps the model, and of everything in memory a fingerprint. So it can be exported and verified by itself;
to go on with it, or to score something on its data, takes what it was given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0compress.errors import InputError
from l0compress.graph.capture.dynamic import Dynamic
from l0compress.loading import DataSource, Model, ModelSource
from l0compress.pipeline import runs
from l0compress.pipeline.options import OPTIONS
from l0compress.pipeline.requests import RunRequest
from l0compress.pipeline.sources import Prepared
from l0compress.training.goals import Criterion, parse_penalty
from l0compress.training.settings import FinetuneSettings
from l0compress.training.targets import Target

FUNCTIONS = ("loss", "optimizer", "scheduler")


@dataclass(frozen=True, eq=False)
class Given:
    """Attributes:
    prepared: model and data.
    settings: how to train, with functions as they are.
    model, data: what the caller called them with.
    dynamic: which sizes of the inputs are free.
    track: the trackers that the run is logged to.
    """

    prepared: Prepared
    settings: FinetuneSettings
    model: Model
    data: Any
    dynamic: Dynamic = "auto"
    track: tuple[str, ...] = ()

    @property
    def source(self) -> DataSource | None:
        """Where the data can be read again, if they were named."""
        if isinstance(self.data, str | Path):
            return DataSource(str(self.data))
        return self.data if isinstance(self.data, DataSource) else None

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """The settings that are functions."""
        return {name: value for name in FUNCTIONS if callable(value := getattr(self.settings, name))}

    def told(self) -> dict[str, str]:
        """What no file names, and of which kind it is: for the manifest."""
        data = {} if self.source is not None else {"data": type(self.data).__name__}
        functions = {name: reference_of(function) for name, function in self.functions.items()}
        return {"model": type(self.model).__name__, **data, **functions}

    def request(
        self, wanted: tuple[Target, ...] | Criterion, folder: Path, *, family: tuple[Target, ...] = ()
    ) -> RunRequest:
        """What the run is asked to do; its own folder holds the model.

        Raises:
            InputError: it cannot be written down.
        """
        penalty = _written(wanted) if isinstance(wanted, Criterion) else None
        names = [row.field for row in OPTIONS.values() if row.field]
        settings = {name: getattr(self.settings, name) for name in names if name in _FIELDS and name != "loss"}
        named = {name: reference_of(function) for name, function in self.functions.items()}
        loss = named.pop("loss", self.settings.loss)
        return RunRequest(
            source=ModelSource(folder / runs.DENSE),
            data=self.source,
            targets=() if isinstance(wanted, Criterion) else wanted,
            loss=str(loss),
            output=folder,
            settings={**settings, **named, "gates": self.settings.gates},
            fixed=self.dynamic == "batch",
            family=family,
            penalty=penalty,
            given=self,
            track=self.track,
        )


def _written(criterion: Criterion) -> str:
    if parse_penalty(str(criterion)) != criterion:
        raise InputError(
            f"{criterion.name}={criterion.value:g} cannot be kept in a run folder, only {criterion.name} itself.",
            fix='Give the loss of each parameter: target={"penalty": 1e-6}.',
        )
    return str(criterion)


_FIELDS = frozenset(inspect.signature(FinetuneSettings).parameters)


def reference_of(function: Callable[..., Any]) -> str:
    """What a function is called in a configuration file, whether or not it can be imported by that name.

    >>> from math import sqrt
    >>> reference_of(sqrt)
    'math:sqrt'
    """
    named = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    return f"{named.__module__}:{named.__qualname__}"
