"""Runs of a few epochs in the working directory: made, killed, and compared file by file."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from l0compress.pipeline.requests import RunRequest, request_of
from l0compress.training.events import ProgressEvent

EQUAL = (
    "run.json", "config.toml", "dense.pt2", "masked.pt2", "small.pt2", "plan.json", "result.json", "metrics.jsonl"
)  # fmt: skip


class Killed(BaseException):
    """The process ends here: nothing after this line happens, and nobody catches it."""


def request(output: str, **changes: object) -> RunRequest:
    values = {"model": "mlp.pt2", "data": "blobs.npz", "target": "params=0.6", "epochs": 3, "checkpoint_every": 2}
    return request_of({**values, **changes}, output=Path(output))


def hashes(run: str | Path) -> dict[str, str]:
    return {name: sha256(Path(run, name).read_bytes()).hexdigest() for name in EQUAL}


def files(run: str | Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in Path(run).rglob("*") if path.is_file()}


def hashes_of_all(run: Path) -> dict[str, str]:
    return {name: sha256((run / name).read_bytes()).hexdigest() for name in sorted(files(run)) if name != ".lock"}


def dying_at(steps: int) -> Callable[[ProgressEvent], None]:
    """A callback that ends the process at an event: live events come at most twice a second, closing ones always."""
    left = [steps]

    def die(event: ProgressEvent) -> None:
        left[0] -= event.epoch_done
        if left[0] < 0:
            raise Killed

    return die
