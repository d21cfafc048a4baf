"""From what is asked for to finished cells: dense models are made once, finished cells are skipped."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from rivals import versions
from rivals.made import NotCut

from l0compress.errors import L0Error
from quality.cells import RIVALS, Cell, Selection
from quality.problem import CALIBRATION_SAMPLES, Problem, Task, fewer
from quality.records import RIVAL_SOURCES, Records, Row, files_fingerprint, fingerprint, sources_fingerprint
from quality.running import run_cell

SMOKE_EPOCHS = 2


@dataclass(frozen=True)
class Options:
    """How cells are run.

    Attributes:
        output: the folder of records and dense models.
        dense: dense models that are somewhere else already, by task.
        smoke: a taste: few samples and epochs, kept apart from real results.
        jobs: processes, of ``threads`` threads each.
        any_version: a cell counts as finished whatever the code was when it ran.
    """

    output: Path
    selection: Selection
    dense: Mapping[str, Path] = field(default_factory=dict)
    smoke: bool = False
    jobs: int = 1
    threads: int = 1
    any_version: bool = False

    @property
    def records(self) -> Records:
        self.output.mkdir(parents=True, exist_ok=True)
        return Records(self.output / ("smoke.jsonl" if self.smoke else "cells.jsonl"))

    def cells(self, task: Task) -> list[Cell]:
        """What is to be measured of a task."""
        short = replace(self.selection, most_epochs=SMOKE_EPOCHS) if self.smoke else self.selection
        return short.cells(task.grid)

    def dense_path(self, task: Task) -> Path:
        """Where the dense model of a task is, or will be."""
        return self.dense.get(task.name, self.output / ("dense-smoke" if self.smoke else "dense") / task.name)

    def has_dense(self, task: Task) -> bool:
        return self.dense_path(task).exists()


def dense_of(task: Task, options: Options) -> Path:
    """Where the dense model of a task is; it is made where it is not there yet, and is there whole or not at all."""
    path = options.dense_path(task)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part{os.getpid()}")
        started = time.perf_counter()
        torch.set_num_threads(options.threads * options.jobs)
        try:
            task.make_dense(part, options.smoke)
            part.replace(path)
        finally:
            if part.is_dir():
                shutil.rmtree(part)
            part.unlink(missing_ok=True)
            torch.set_num_threads(options.threads)
        print(f"{task.name}: dense model made in {time.perf_counter() - started:.0f} s", flush=True)
    return path


def fingerprints(task: Task, cells: Sequence[Cell], options: Options) -> dict[Cell, str]:
    """What the numbers of each cell depend on: code, with the defaults in it, torch, and the dense model."""
    settled = torch.__version__, str(CALIBRATION_SAMPLES), str(options.smoke)
    shared = sources_fingerprint(), files_fingerprint(dense_of(task, options)), *settled
    theirs = sources_fingerprint(names=RIVAL_SOURCES)

    def own(cell: Cell) -> tuple[str, ...]:
        return (theirs, versions(cell.method)) if cell.method in RIVALS else ()

    return {cell: fingerprint(cell.key, *shared, *own(cell)) for cell in cells}


def run(tasks: Sequence[Task], options: Options) -> list[str]:
    """Run what is not finished; returns what failed, in words."""
    failures: list[str] = []
    torch.set_num_threads(options.threads)
    with _pool(options) as pool:
        for task in (task for task in tasks if options.cells(task)):
            marks = fingerprints(task, options.cells(task), options)
            done = options.records.finished(marks, any_version=options.any_version)
            left = {cell: mark for cell, mark in marks.items() if cell not in done}
            print(f"{task.name}: {len(left)} of {len(marks)} cells to run", flush=True)
            for cell, outcome in _outcomes(task, left, options, pool):
                if isinstance(outcome, str):
                    failures.append(f"{cell.key}: {outcome}")
                    print(failures[-1], flush=True)
                    continue
                options.records.append(outcome)
                print(describe(outcome, task), flush=True)
    return failures


def _outcomes(
    task: Task, left: Mapping[Cell, str], options: Options, pool: ProcessPoolExecutor | None
) -> Iterator[tuple[Cell, Row | str]]:
    """Every cell with its row, or what went wrong, as they finish."""
    dense = dense_of(task, options)
    if pool is None:
        for cell, mark in left.items():
            yield cell, measured(task, cell, dense, mark, options)
        return
    futures: dict[Future[Row | str], Cell] = {
        pool.submit(_measured_by_name, cell, dense, mark, options): cell for cell, mark in left.items()
    }
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        # Where something went wrong, or someone stops the run, what is not done starts over another time.
        if not all(future.done() for future in futures):
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()


def measured(task: Task, cell: Cell, dense: Path, mark: str, options: Options) -> Row | str:
    """The row of one cell, or what the package, or another project, said against it."""
    try:
        problem = _problem(task, dense, options.smoke)
        return run_cell(cell, problem, task.score, fingerprint=mark, jobs=options.jobs)
    except (L0Error, NotCut) as reason:
        return f"{type(reason).__name__}: {reason}"


def _measured_by_name(cell: Cell, dense: Path, mark: str, options: Options) -> Row | str:
    from quality.tasks import TASKS

    return measured(TASKS[cell.task], cell, dense, mark, options)


@lru_cache(maxsize=1)
def _problem(task: Task, dense: Path, smoke: bool) -> Problem:
    problem = task.load(dense)
    return replace(problem, data=fewer(problem.data)) if smoke else problem


def _pool(options: Options) -> AbstractContextManager[ProcessPoolExecutor | None]:
    if options.jobs == 1:
        return nullcontext()
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(options.jobs, context, initializer=torch.set_num_threads, initargs=(options.threads,))


def describe(row: Row, task: Task) -> str:
    """One line for the terminal."""
    digits = task.score.digits
    return (
        f"{row.cell.key}: {row.reached:.3f} of the {row.cell.unit}, {task.score.name} validation {row.val:.{digits}f}, "
        f"test {row.test:.{digits}f}, {row.seconds:.0f} s"
    )
