"""Run the catalogue, one process a model, and write the table.

    PYTHONPATH=benchmarks python -m zoo [--only PATTERN ...] [--jobs 2] [--timeout 900] [--memory-gb 14] [--fresh]

What is in the cache already is not run again unless ``--again`` (only what failed: ``--failed``) says so. Exit code 1 if
any model came out wrong or crashed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from zoo.catalogue import Entry, entries
from zoo.table import FAILURES, verdict_of, written

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / "build" / "zoo.jsonl"
TABLE = REPOSITORY / "docs" / "zoo.md"


@dataclass(frozen=True)
class Limits:
    """What one worker may take."""

    seconds: float
    memory_gb: float


def load() -> dict[str, dict[str, Any]]:
    """The latest result of each model; those of Torch-Pruning under ``rival:<name>``."""
    if not CACHE.exists():
        return {}
    return {row["key"]: row for line in CACHE.read_text().splitlines() if (row := json.loads(line))}


def run_worker(module: str, name: str, limits: Limits, *options: str) -> dict[str, Any]:
    """Start a worker, read its lines of JSON, and stop it when it takes too long or too much."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", module, name, str(writer), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    started = time.monotonic()
    process = subprocess.Popen(
        command, pass_fds=(writer,), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=REPOSITORY
    )
    os.close(writer)
    with ThreadPoolExecutor(2) as readers:
        lines = readers.submit(lambda: os.fdopen(reader).read().splitlines())
        noise = readers.submit(process.stderr.read) if process.stderr else None
        stopped = _wait(process, started, limits)
        found = [json.loads(line) for line in lines.result()]
        complaint = noise.result().decode(errors="replace").strip().splitlines()[-1:] if noise else []
    result: dict[str, Any] = found[-1] if found else {"name": name, "stage": "start"}
    if stopped:
        result["stopped"] = f"{stopped} in stage {result['stage']}"
    elif process.returncode:
        result["verdict"], result["reason"] = "crash", f"exit code {process.returncode}: {''.join(complaint)}"
    result["wall"] = round(time.monotonic() - started, 1)
    return result


def _wait(process: subprocess.Popen[bytes], started: float, limits: Limits) -> str | None:
    while process.poll() is None:
        time.sleep(0.1)
        reason = None
        if time.monotonic() - started > limits.seconds:
            reason = f"more than {limits.seconds:.0f} s"
        elif _resident_gb(process.pid) > limits.memory_gb:
            reason = f"more than {limits.memory_gb:g} GB"
        if reason:
            process.kill()
            process.wait()
            return reason
    return None


def _resident_gb(pid: int) -> float:
    statm = Path(f"/proc/{pid}/statm")
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (OSError, IndexError):
        return 0.0


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
        numbers = " ".join(f"{k} {row[k]:.2g}" for k in ("prunable", "error64", "independent", "onnx") if k in row)
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
