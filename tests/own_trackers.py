"""Trackers as users write them, on Accelerate's class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker


class Lines(GeneralTracker):
    """One line of JSON for whatever it is told."""

    name = "lines"
    requires_logging_directory = True

    def __init__(self, run: str, folder: Path) -> None:
        super().__init__()
        self.run, self.folder = run, folder

    @property
    def tracker(self) -> Path:
        return self.folder / f"{self.run}.lines"

    def _write(self, *said: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.tracker.open("a") as file:
            file.write(json.dumps(said) + "\n")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._write("settings", values)

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self._write(step, {**values, **more})

    def finish(self) -> None:
        self._write("finish")


class Failing(Lines):
    """It loses its connection at the first numbers."""

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        del values, step, more
        raise ConnectionError("the server is gone\nfor good")


def not_a_tracker(run: str, folder: Path) -> str:
    return f"{run} in {folder}"
