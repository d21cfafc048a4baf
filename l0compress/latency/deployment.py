"""Where a model runs: batch size, threads, number format; and the machine that all of it was measured on."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from l0compress.errors import TargetError

DTYPES = ("float32", "int8")
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Deployment:
    """How the model will be run.

    Attributes:
        batch: samples a call.
        threads: threads within an operator.
        dtype: ``float32``, or ``int8`` for the file that ``export --quantize int8`` writes.

    Raises:
        TargetError: a count below 1, or another dtype.
    """

    batch: int = 1
    threads: int = 2
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 1:
            raise TargetError(
                f"latency is measured with at least one sample and one thread, not {self.batch} and {self.threads}.",
                fix="Give counts from 1 on.",
            )
        if self.dtype not in DTYPES:
            raise TargetError(f"unknown latency dtype {self.dtype!r}.", fix=f"Choose one of {', '.join(DTYPES)}.")

    @property
    def int8(self) -> bool:
        """Whether the model runs in int8."""
        return self.dtype == "int8"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return it in words."""
        samples, threads = (
            f"{count} {word}{'s' if count > 1 else ''}"
            for count, word in ((self.batch, "sample"), (self.threads, "thread"))
        )
        return f"{samples} a call, {threads}, {self.dtype}"


def machine_key(deployment: Deployment) -> str:
    """A short name of this machine, deployment and versions; a table of times is valid for one such name.

    >>> machine_key(Deployment()) == machine_key(Deployment(batch=1, threads=2)) != machine_key(Deployment(threads=1))
    True
    """
    parts = (_processor(), platform.machine(), version("onnxruntime"), str(deployment.threads), deployment.dtype)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    if _CPU_INFO.is_file():
        kept = ("model name", "flags", "CPU part", "Features")
        lines = [line for line in _CPU_INFO.read_text(errors="replace").splitlines() if line.startswith(kept)]
        return "\n".join(sorted(set(lines)))
    return platform.processor()
