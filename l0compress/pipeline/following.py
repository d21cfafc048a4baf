"""A run's folder as it is for the processes beside the first: they know what is in it, and write nothing.

requires: the first process holds the folder and writes for all. It may be on another host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l0compress.pipeline.living_run import LivingRun
from l0compress.pipeline.run_manifest import RunManifest
from l0compress.training.events import ProgressEvent
from l0compress.training.state_dicts import StateDict


@dataclass(frozen=True)
class Opened:
    """What the first process tells of the run that it has opened.

    Attributes:
        folder: where it is.
        manifest: what it says.
        values: what the run was asked to do.
        outcome: what came of it, where it is finished; then there is nothing to do.
    """

    folder: Path
    manifest: RunManifest
    values: Mapping[str, Any]
    outcome: Any = None


class FollowedRun(LivingRun):
    """Takes the place of the folder. What is noted of the run is remembered, so that all processes know the same."""

    def start(self) -> StateDict | None:
        """None: the first process reads the state, and hands it on."""
        return None

    def save_(self, state: StateDict) -> None:
        """Nothing is written."""

    def tell_(self, event: ProgressEvent) -> None:
        """Nothing is written."""

    def log_(self, what: str, **details: Any) -> None:
        """Nothing is written."""

    def note_(self, **about: Any) -> None:
        """Remember it."""
        self.manifest = replace(self.manifest, about={**self.manifest.about, **about})

    def finish_(self, results: Mapping[str, bytes], export: Callable[[Path], tuple[str, ...]]) -> None:
        """Nothing is written."""

    def keep_(self, name: str) -> None:
        """Nothing is written."""

    def begin_(self, files: Mapping[str, bytes], export: Callable[[Path], tuple[str, ...]]) -> None:
        """Nothing is written."""

    def drop_leftovers_(self) -> None:
        """Nothing is removed."""

    def writing(self) -> AbstractContextManager[None]:
        """Nothing can fail."""
        return nullcontext()
