"""The machine that something ran on, in a few words: what a log notes and a report shows."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_NAMES = ("model name", "Model", "Hardware")


def machine() -> dict[str, str | int]:
    """Return the processor, how many of its cores may be used, and the system.

    >>> sorted(machine())
    ['cores', 'cpu', 'system']
    """
    return {"cpu": _processor(), "cores": _cores(), "system": f"{platform.system()} {platform.machine()}"}


def _processor() -> str:
    lines = _CPU_INFO.read_text(errors="replace").splitlines() if _CPU_INFO.is_file() else []
    named = (line.partition(":")[2].strip() for name in _NAMES for line in lines if line.startswith(name))
    return next(named, "") or platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
