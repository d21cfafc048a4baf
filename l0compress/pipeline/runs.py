"""The run folder: what a fine-tuning run leaves behind, complete or not at all.

::

    RUN/
      config.json      what was asked for
      dense.pt2        the model as it was given
      masked.pt2       the dense-shaped model with the trained weights, blind to what was removed: the reference
      small.pt2        the same function, physically smaller: what is exported
      plan.json        which channels were kept, group by group
      metrics.jsonl    one line per epoch
      result.json      costs and metrics, dense against small
      preprocessing.json   how raw data became the model's inputs, where this package did that (docs/data.md)
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from l0compress.errors import RunError
from l0compress.graph.cost import Cost
from l0compress.report import Measured

RUNS = Path("runs")
PREPROCESSING = "preprocessing.json"
CONFIG, RESULT, PLAN, METRICS = "config.json", "result.json", "plan.json", "metrics.jsonl"
DENSE, MASKED, SMALL = "dense.pt2", "masked.pt2", "small.pt2"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what was asked for, and what came out."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def dense(self) -> Path:
        """The model as it was given."""
        return self.folder / DENSE

    @property
    def masked(self) -> Path:
        """The dense-shaped model that every export of the run must equal."""
        return self.folder / MASKED

    @property
    def small(self) -> Path:
        """The smaller model."""
        return self.folder / SMALL


def open_run(folder: Path | None = None, *, root: Path = RUNS) -> Run:
    """Open a finished run; by default the newest one under ``root``.

    Raises:
        RunError: there is none, or a file of it is missing or unreadable.
    """
    folder = newest_run(root) if folder is None else Path(folder)
    if not folder.is_dir():
        raise RunError(f"Cannot read run {str(folder)!r}: no such folder. Make one with l0compress finetune.")
    missing = [name for name in (CONFIG, RESULT, DENSE, MASKED, SMALL) if not (folder / name).is_file()]
    if missing:
        raise RunError(f"{str(folder)!r} is no finished run: {missing[0]} is missing. Name another.")
    return Run(folder, _read_json(folder / CONFIG), _read_json(folder / RESULT))


def newest_run(root: Path = RUNS) -> Path:
    """The finished run under ``root`` that was finished last.

    Raises:
        RunError: there is none.
    """
    results = sorted(root.glob(f"*/{RESULT}"), key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
    if not results:
        raise RunError(f"There is no finished run under {str(root)!r}. Name one, or make one with l0compress finetune.")
    return results[-1].parent


def run_folder(output: Path | None, stem: str, *, root: Path = RUNS) -> Path:
    """Where a new run goes: ``output``, or a folder under ``root`` named by date, time and the model file's stem.

    Raises:
        RunError: the folder exists and is not empty, or is a file.
    """
    folder = root / f"{datetime.now().strftime('%Y%m%d-%H%M%S')}-{stem}" if output is None else Path(output)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RunError(f"{str(folder)!r} exists already. Nothing was written. Choose another folder with --output.")
    return folder


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``folder`` that becomes it when the body succeeds, and vanishes when it does not.

    Raises:
        RunError: the folder cannot be made.
    """
    made = [parent for parent in (folder.parent, *folder.parent.parents) if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise RunError(
            f"Cannot write {str(folder)!r}: {error.strerror}. Choose another folder with --output."
        ) from error
    try:
        yield staging
        staging.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        staging.replace(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def measured(result: Mapping[str, Any], name: str, *, file_bytes: int | None = None) -> Measured:
    """What a run's result says of its ``dense`` or ``small`` model: cost, and the metric on the test part.

    The validation part stands in where there is no test part.
    """
    return Measured(name, Cost(**result[name]), _scores(result)[name]["metric"], file_bytes)


def metric_name(result: Mapping[str, Any]) -> str:
    """The name of the metric, and the part of the data that it was taken on."""
    return f"{'test' if result['test'] else 'validation'} {_scores(result)['dense']['metric_name']}"


def _scores(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return result["test"] or result["val"]


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {str(path)!r}: {error}.") from error
    if not isinstance(value, dict):
        raise RunError(f"Cannot read {str(path)!r}: a JSON object is expected.")
    return value
