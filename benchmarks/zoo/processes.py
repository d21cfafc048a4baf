"""Workers: one process a model, with a limit on time and on memory.

They are forked from a server that has imported the libraries already, which saves seconds a model.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKERS = multiprocessing.get_context("forkserver")
WORKERS.set_forkserver_preload(["zoo.preload"])


@dataclass(frozen=True)
class Limits:
    """What one worker may take."""

    seconds: float
    memory_gb: float


def run_worker(module: str, name: str, limits: Limits, *options: str) -> dict[str, Any]:
    """Start a worker, read its lines of JSON, and stop it when it takes too long or too much."""
    started = time.monotonic()
    mine, theirs = WORKERS.Pipe(duplex=False)
    process = WORKERS.Process(target=_work, args=(module, name, theirs, options))
    process.start()
    theirs.close()
    stopped = None
    result: dict[str, Any] = {"name": name, "stage": "start"}
    while not stopped:
        if mine.poll(0.2):
            try:
                result = json.loads(mine.recv_bytes())
            except EOFError:
                break
        stopped = _beyond(process.pid or 0, time.monotonic() - started, limits)
    if stopped:
        process.kill()
        result["stopped"] = f"{stopped} in stage {result['stage']}"
    process.join()
    if process.exitcode and not stopped:
        result["verdict"], result["reason"] = "crash", f"exit code {process.exitcode} in stage {result['stage']}"
    result["wall"] = round(time.monotonic() - started, 1)
    return result


def _work(module: str, name: str, stream: Any, options: tuple[str, ...]) -> None:
    """In the worker: everything but the results is thrown away."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    importlib.import_module(module).main(name, stream.send_bytes, *options)


def _beyond(pid: int, seconds: float, limits: Limits) -> str | None:
    if seconds > limits.seconds:
        return f"more than {limits.seconds:.0f} s"
    return f"more than {limits.memory_gb:g} GB" if _resident_gb(pid) > limits.memory_gb else None


def _resident_gb(pid: int) -> float:
    statm = Path(f"/proc/{pid}/statm")
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (OSError, IndexError):
        return 0.0
