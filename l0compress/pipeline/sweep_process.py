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


def run_and_wait(arguments: Sequence[str], log: str, folder: str) -> int:
    """Return the exit code of a process; an interrupt, by which Ray cancels a task, lets it keep its state first."""
    process = started(arguments, Path(log), folder)
    try:
        # Ray's interrupt is raised between two lines of Python, not in the midst of a call that waits.
        while process.poll() is None:
            time.sleep(_POLL)
    except KeyboardInterrupt:
        process.terminate()
    return process.wait()
