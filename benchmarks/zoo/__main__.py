"""Run the catalogue, one process a model, and write the table.

    PYTHONPATH=benchmarks python -m zoo [--only PATTERN ...] [--jobs 2] [--timeout 900] [--memory-gb 14] [--fresh]

What is in the cache already is not run again unless ``--again`` (only what failed: ``--failed``) says so. Exit code 1
if any model came out wrong or crashed.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from zoo.catalogue import entries
from zoo.entry import Entry
from zoo.processes import Limits, run_worker
from zoo.table import FAILURES, verdict_of, written

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / "build" / "zoo.jsonl"
TABLE = REPOSITORY / "docs" / "zoo.md"
SHOWN = ("prunable", "inner_prunable", "error64", "independent", "onnx")


def load() -> dict[str, dict[str, Any]]:
    """The latest result of each model; those of Torch-Pruning under ``rival:<name>``."""
    if not CACHE.exists():
        return {}
    return {row["key"]: row for line in CACHE.read_text().splitlines() if (row := json.loads(line))}


def tasks(arguments: argparse.Namespace, done: dict[str, dict[str, Any]]) -> list[tuple[str, Entry]]:
    """What is still to run: ``(key, entry)``."""
    chosen = [e for e in entries() if not arguments.only or any(fnmatch(e.name, p) for p in arguments.only)]
    keyed = [(entry.name, entry) for entry in chosen]
    if not arguments.no_rival:
        keyed += [(f"rival:{entry.name}", entry) for entry in chosen if entry.rival]

    def wanted(key: str) -> bool:
        if key not in done or arguments.again:
            return True
        return arguments.failed and not key.startswith("rival:") and verdict_of(done[key]) in FAILURES

    return [(key, entry) for key, entry in keyed if wanted(key)]


def run_one(key: str, entry: Entry, arguments: argparse.Namespace) -> None:
    limits = Limits(arguments.timeout, arguments.memory_gb)
    if key.startswith("rival:"):
        row = run_worker("zoo.rival", entry.name, limits)
        line = row.get("outcome") or row.get("reason") or row.get("stopped")
    else:
        row = run_worker("zoo.worker", entry.name, limits, "0" if arguments.no_onnx else "1")
        numbers = " ".join(f"{k} {row[k]:.2g}" for k in SHOWN if row.get(k) is not None)
        line = f"{verdict_of(row)}  {numbers}  {row.get('reason') or row.get('stopped') or row.get('onnx_error') or ''}"
    with CACHE.open("a") as cache:
        cache.write(json.dumps({"key": key, **row}) + "\n")
    print(f"{key:<55} {row['wall']:6.1f} s {row.get('peak_mb', 0):6} MB  {str(line)[:400]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="PATTERN", help="names to run, as in torchvision/resnet*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900)
    parser.add_argument("--memory-gb", type=float, default=14)
    parser.add_argument("--fresh", action="store_true", help="forget what is in the cache")
    parser.add_argument("--again", action="store_true", help="run what is in the cache again")
    parser.add_argument("--failed", action="store_true", help="run again what failed")
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--no-rival", action="store_true")
    parser.add_argument("--table", action="store_true", help="write the table and run nothing")
    arguments = parser.parse_args()
    CACHE.parent.mkdir(exist_ok=True)
    if arguments.fresh:
        CACHE.unlink(missing_ok=True)
    if not arguments.table:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda task: run_one(*task, arguments), tasks(arguments, load())))
    catalogue = [entry.name for entry in entries()]
    rows = {key: row for key, row in load().items() if key.removeprefix("rival:") in catalogue}
    TABLE.write_text(written(rows, catalogue))
    return int(any(verdict_of(row) in FAILURES for key, row in rows.items() if not key.startswith("rival:")))


if __name__ == "__main__":
    sys.exit(main())
