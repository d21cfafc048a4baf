"""A run folder while its run is under way: held by one process, and fit to go on from at any moment.

requires: a folder that is new, or that an unfinished run left.
ensures:  the manifest names only whole files that will not change. A process that ends anywhere, by any cause, leaves
          the last state that was saved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from l0compress.errors import RunError
from l0compress.pipeline import runs
from l0compress.pipeline.durable import sha256_of, sync, write_durably
from l0compress.pipeline.machine import machine
from l0compress.pipeline.run_manifest import FINISHED, RunManifest
from l0compress.pipeline.run_result import json_bytes
from l0compress.training.events import ProgressEvent
from l0compress.training.state_dicts import MEMBER, StateDict

_WALL_CLOCK = ("seconds", "seconds_left")


class LivingRun:
    """An unfinished run's folder. Made by :mod:`~l0compress.pipeline.holding`, which also lets it go."""

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.rows: list[dict[str, Any]] = []
        self._serial = 0 if manifest.state is None else int(Path(manifest.state).name)

    def start(self) -> StateDict | None:
        """The state to go on from; None where the run goes on from its beginning.

        Raises:
            RunError: it cannot be read.
        """
        self.rows = []
        state: StateDict | None = None
        if self.manifest.state is not None:
            path = self.folder / self.manifest.state
            try:
                values = json.loads(path.with_suffix(".json").read_bytes())
                state = {**values, **load_tensors(path.with_suffix(".safetensors").read_bytes())}
            except (OSError, ValueError, SafetensorError) as error:
                raise RunError(f"Cannot read the state {str(path)!r} ({error}).", fix="") from error
            self.rows = state.pop("metrics")
        with self.writing():
            self._write_metrics()
        return state

    def save_(self, state: StateDict) -> None:
        """Write a state, tensors to one file and plain values to another; it takes the place of the one before.

        Raises:
            RunError: the disk is full or fails; the one before still holds.
        """
        name = f"{runs.STATE}/{self._serial + 1:08}"
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        values = {**{key: value for key, value in state.items() if key not in tensors}, "metrics": self.rows}
        content = {
            f"{name}.safetensors": save_tensors(_apart(tensors)),
            f"{name}.json": json_bytes(values),
        }
        with self.writing():
            (self.folder / runs.STATE).mkdir(exist_ok=True)
            files = {path: write_durably(self.folder / path, written) for path, written in content.items()}
            stays = {path: digest for path, digest in self.manifest.files.items() if path not in self._state_files()}
            manifest = replace(self.manifest, position=position(values), state=name, files={**stays, **files})
            manifest.write(self.folder)
        self.manifest, self._serial = manifest, self._serial + 1
        self._drop_old_states()

    def tell_(self, event: ProgressEvent) -> None:
        """Write the close of an epoch down: what was measured to the metrics, how long it took to the log.

        Raises:
            RunError: the disk is full or fails.
        """
        row = event.row()
        self.rows.append({name: value for name, value in row.items() if name not in _WALL_CLOCK})
        with self.writing(), (self.folder / runs.METRICS).open("ab") as file:
            file.write(line(self.rows[-1]))
        whose = {MEMBER: event.member} if event.member else {}
        self.log_("epoch", **whose, stage=event.stage, epoch=event.epoch, seconds=round(event.seconds, 3))

    def log_(self, what: str, **details: Any) -> None:
        """Add a line to the log.

        Raises:
            RunError: the disk is full or fails.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self.writing(), (self.folder / runs.LOG).open("ab") as file:
            file.write(line({"time": time, "what": what, **details}))

    def note_(self, **about: Any) -> None:
        """Change what the manifest says of the run.

        Raises:
            RunError: the disk is full or fails.
        """
        manifest = replace(self.manifest, about={**self.manifest.about, **about})
        with self.writing():
            manifest.write(self.folder)
        self.manifest = manifest

    def finish_(self, results: Mapping[str, bytes], export: Callable[[Path], tuple[str, ...]]) -> None:
        """Write the results; the run is finished when the manifest says so, and then needs no state.

        Args:
            results: contents by name.
            export: writes the models to the folder, and returns their names.

        Raises:
            RunError: the disk is full or fails; the last state still holds.
        """
        with self.writing():
            files = {name: write_durably(self.folder / name, content) for name, content in results.items()}
            self._write_metrics()
            for name in (*export(self.folder), runs.METRICS):
                sync(self.folder / name)
                files[name] = sha256_of(self.folder / name)
            sync(self.folder)
            self.log_("finished")
            stays = {name: digest for name, digest in self.manifest.files.items() if name not in self._state_files()}
            manifest = RunManifest(FINISHED, "the end", None, {**stays, **files}, self.manifest.about)
            manifest.write(self.folder)
        self.manifest = manifest
        self._drop_old_states()

    def keep_(self, name: str) -> None:
        """Name a whole file, which will not change any more, in the manifest.

        Raises:
            RunError: the disk is full or fails.
        """
        with self.writing():
            manifest = replace(self.manifest, files={**self.manifest.files, name: sha256_of(self.folder / name)})
            manifest.write(self.folder)
        self.manifest = manifest

    def begin_(self, files: Mapping[str, bytes], export: Callable[[Path], tuple[str, ...]]) -> None:
        """Write what a run begins with; from here on it can be resumed.

        Raises:
            RunError: the disk is full or fails.
        """
        with self.writing():
            written = {name: write_durably(self.folder / name, content) for name, content in files.items()}
            for name in export(self.folder):
                sync(self.folder / name)
                written[name] = sha256_of(self.folder / name)
            manifest = replace(self.manifest, files=written)
            manifest.write(self.folder)
        self.manifest = manifest
        self.log_("began", machine=machine())

    def drop_leftovers_(self) -> None:
        """Remove what a process that was killed had not finished writing."""
        for entry in self.folder.iterdir():
            if entry.name.startswith(".") and entry.name != runs.LOCK:
                remove(entry)
        self._drop_old_states()

    def _state_files(self) -> tuple[str, ...]:
        state = self.manifest.state
        return () if state is None else (f"{state}.safetensors", f"{state}.json")

    def _drop_old_states(self) -> None:
        folder = self.folder / runs.STATE
        wanted = {Path(path).name for path in self._state_files()}
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.name not in wanted:
                remove(entry)
        if not wanted and folder.is_dir():
            remove(folder)

    def _write_metrics(self) -> None:
        write_durably(self.folder / runs.METRICS, b"".join(line(row) for row in self.rows))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What fails to be written says what is kept, and how to go on."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"Cannot write to run {str(self.folder)!r}: {error.strerror}. Its last state is kept: "
                f"{self.manifest.position}. Make room, then: {runs.resume_command(self.folder)}"
            ) from error


def position(values: Mapping[str, Any]) -> str:
    """Where a state stands, for people.

    >>> position({"epoch": 2, "epochs": 48, "step": 5, "steps": 33}), position({"epoch": 2, "epochs": 48, "step": 0})
    ('step 5 of 33 in epoch 3 of 48', 'the end of epoch 2 of 48')
    >>> position({"epoch": 2, "epochs": 12, "step": 0, "member": "macs=0.4"})
    'the end of epoch 2 of 12 of macs=0.4'
    """
    member = f" of {values[MEMBER]}" if MEMBER in values else ""
    if values["step"]:
        epoch = f"epoch {values['epoch'] + 1} of {values['epochs']}{member}"
        return f"step {values['step']} of {values['steps']} in {epoch}"
    return f"the end of epoch {values['epoch']} of {values['epochs']}{member}"


def remove(entry: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as that goes."""
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with suppress(OSError):
            entry.unlink()


def line(value: Mapping[str, Any]) -> bytes:
    """One line of a file of JSON lines."""
    return (json.dumps(value, allow_nan=False) + "\n").encode()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file can hold them: on the CPU, without gaps, none of them sharing memory."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        where = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if where in seen else plain
        seen.add(where)
    return apart
