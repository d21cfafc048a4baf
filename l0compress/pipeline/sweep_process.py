"""The process of a trial. Workers of a cluster import this file, so that it needs nothing of the package."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_POLL = 0.1


def started(arguments: Sequence[str], log: Path, folder: str | None = None) -> subprocess.Popen[bytes]:
    """Start this same Python with ``arguments``, in ``folder``; what it says goes to ``log``."""
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=file, cwd=folder)


def run_and_wait(arguments: Sequence[str], log: str, folder: str, stop: str) -> int:
    """Return the exit code of a process. Where the file ``stop`` appears, the process is asked to keep its state first.

    An interrupt, by which Ray cancels a task, asks the same; but it gets lost where it meets code that ignores errors.
    """
    process, asked = started(arguments, Path(log), folder), False
    while process.poll() is None:
        try:
            time.sleep(_POLL)
            wanted = Path(stop).exists()
        except KeyboardInterrupt:
            wanted = True
        if wanted and not asked:
            process.terminate()
            asked = True
    return process.wait()
