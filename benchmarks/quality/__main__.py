"""Every method on every task, at equal budgets and epochs.

    make bench-quality    # TASKS=sst2,housing METHODS=l0,fisher SEEDS=0,1 BUDGETS=0.5 EPOCHS=0,4 JOBS=2 QUICK=1 OUTPUT=
    make bench-quality METHODS=all    # all that there are, docs/methods.md, each where it can decide
    make bench-quality RIVALS=all     # beside them Torch-Pruning and onnxsim, which this installs (benchmarks/rivals)

Finished cells are kept in ``OUTPUT/cells.jsonl`` and not run again while code, torch and dense model are the same; a
cell that was stopped starts over. Dense models are trained once and kept in ``OUTPUT/dense``. A full run writes
docs/quality.md and docs/quality.svg from all that is finished, a quick one the same names in OUTPUT. Data are read from
``$L0COMPRESS_DATA``, by default ``../shared/data``; a task whose data are not there is left out.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rivals import missing

from l0compress.training.settings import METHOD_NAMES
from quality.cells import METHODS, RIVALS, Selection
from quality.harness import Options, dense_of, fingerprints, run
from quality.page import write_page
from quality.problem import Task
from quality.records import Row
from quality.tasks import TASKS

REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    seeds = given.seeds or ((0,) if given.quick or given.smoke else (0, 1, 2))
    options = Options(
        output=given.output.resolve(),
        selection=Selection(
            (*given.methods, *_present(given.rivals)),
            seeds,
            given.budgets,
            given.epochs,
            quick=given.quick,
        ),
        dense={name: Path(path).resolve() for name, _, path in (text.partition("=") for text in given.dense)},
        smoke=given.smoke,
        jobs=given.jobs,
        threads=given.threads,
        any_version=given.any_version,
    )
    possible = _possible(list(TASKS.values()))
    chosen = [task for task in possible if task.name in given.tasks]
    if given.dense_only:
        for task in chosen:
            dense_of(task, options)
        return 0
    failures = [] if given.page_only else run(chosen, options)
    kept_apart = given.quick or given.smoke
    # The page of the whole benchmark has all that is finished, whatever part of it was run now.
    every = Selection((*METHOD_NAMES, *(name for name in RIVALS if missing(name) is None)), sorted({0, 1, 2, *seeds}))
    shown = options if kept_apart else replace(options, selection=every)
    rows, earlier = finished([task for task in possible if shown.has_dense(task)], shown)
    text = write_page(TASKS, rows, options.output if kept_apart else REPOSITORY / "docs", earlier=earlier)
    print(text if kept_apart else "docs/quality.md and docs/quality.svg are written")
    print(*failures, sep="\n")
    return int(bool(failures))


def _possible(tasks: Sequence[Task]) -> list[Task]:
    possible = []
    for task in tasks:
        reason = task.missing()
        if reason is None:
            possible.append(task)
        else:
            print(f"{task.name} is left out: {reason}", flush=True)
    return possible


def _present(methods: Sequence[str]) -> tuple[str, ...]:
    """Those of other projects that are installed."""
    absent = {method: reason for method in methods if (reason := missing(method)) is not None}
    for method, reason in absent.items():
        print(f"{method} is left out: {reason}", flush=True)
    return tuple(method for method in methods if method not in absent)


def finished(tasks: Sequence[Task], options: Options) -> tuple[list[Row], int]:
    """The rows of all cells that are asked for, of all tasks, and how many of them another version of the code made."""
    rows: list[Row] = []
    earlier = 0
    for task in tasks:
        marks = fingerprints(task, options.cells(task), options)
        done = options.records.finished(marks, any_version=options.any_version)
        rows += [done[cell] for cell in marks if cell in done]
        earlier += sum(row.fingerprint != marks[cell] for cell, row in done.items())
    return rows, earlier


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=_names(TASKS), default=tuple(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument(
        "--methods", type=_names(METHOD_NAMES), default=METHODS, help=f"all, or of {', '.join(METHOD_NAMES)}"
    )
    parser.add_argument(
        "--rivals", type=_names(RIVALS), default=(), help=f"of other projects: all, or of {', '.join(RIVALS)}"
    )
    parser.add_argument("--seeds", type=_numbers(int), help="default 0,1,2; with --quick 0")
    parser.add_argument("--budgets", type=_numbers(float), default=(), help="of those of the tasks; default all")
    parser.add_argument("--epochs", type=_numbers(int), default=(), help="of those of the tasks; default all")
    parser.add_argument("--quick", action="store_true", help="one seed and the cells that matter most")
    parser.add_argument("--smoke", action="store_true", help="few samples and epochs: does everything run?")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "quality")
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--dense", action="append", default=[], metavar="TASK=PATH", help="a dense model made before")
    parser.add_argument("--dense-only", action="store_true", help="make the dense models and stop")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is finished")
    parser.add_argument("--any-version", action="store_true", help="finished cells count whatever the code was")
    return parser


def _names(known: Sequence[str] | dict[str, Task]):
    def read(text: str) -> tuple[str, ...]:
        names = tuple(known) if text == "all" else tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return names

    return read


def _numbers(kind: type[int] | type[float]):
    def read(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(number) for number in text.split(","))
        except ValueError as reason:
            raise argparse.ArgumentTypeError(f"{text}: expected numbers with commas between them") from reason

    return read


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
