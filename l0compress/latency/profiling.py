"""Timing one operator inside ONNX Runtime, by its own profiler, and remembering what was measured.

requires: an operator with its widths.
ensures:  nanoseconds of its kernels alone, the same number for the same question on one machine from then on.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from l0compress.latency.deployment import Deployment, machine_key
from l0compress.latency.operators import COPIES, Timed
from l0compress_runtime.sessions import session_options

_CALLS, _WARMUP, _QUIET = 9, 2, 30
_KERNEL = "_kernel_time"


def operator_time(operator: Timed, deployment: Deployment) -> float:
    """Nanoseconds that the kernels of ``operator`` take: the median of several calls."""
    model = operator.model(deployment.batch, int8=deployment.int8)
    feeds = {entry.name: _noise(entry) for entry in model.graph.input}
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads=deployment.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(_CALLS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    return quiet_time_of(events, operator.is_part) / (COPIES - 1)


def quiet_time_of(events: Sequence[dict[str, Any]], is_part: Callable[[str, str], bool]) -> float:
    """Nanoseconds of the kernels that are part of what is timed, added up, each as it runs where little disturbs it.

    >>> event = {"cat": "Node", "name": "y_kernel_time", "args": {"op_name": "Gemm", "node_index": "0"}}
    >>> quiet_time_of([event | {"dur": us} for us in (90, 30, 3, 3, 3, 4)], lambda op_type, name: op_type == "Gemm")
    3000.0
    """
    taken: defaultdict[str, list[int]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        if is_part(event["args"]["op_name"], name.removesuffix(_KERNEL)):
            taken[event["args"]["node_index"]].append(event["dur"])
    return float(sum(np.percentile(durations[_WARMUP:] or durations, _QUIET) for durations in taken.values())) * 1000


def _noise(entry: Any) -> np.ndarray:
    shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@dataclass
class Stopwatch:
    """Times operators, each once: what was measured on this machine before is looked up.

    Attributes:
        deployment: how they are run.
        path: where times are kept; None keeps them in memory only.
    """

    deployment: Deployment
    path: Path | None = None
    times: dict[str, float] = field(default_factory=dict)
    measured: int = 0

    @classmethod
    def opened(cls, deployment: Deployment) -> Stopwatch:
        """The times that are kept of this machine. A file that cannot be read counts as empty."""
        path = cache_folder() / f"latency-{machine_key(deployment)}.json"
        try:
            times = {str(key): float(value) for key, value in json.loads(path.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            times = {}
        return cls(deployment, path, times)

    def time(self, operator: Timed) -> float:
        """Nanoseconds of an operator."""
        key = f"{self.deployment.batch} {operator!r}"
        if key not in self.times:
            self.times[key] = operator_time(operator, self.deployment)
            self.measured += 1
        return self.times[key]

    def keep(self) -> None:
        """Write the times down for the next run, where that is possible. A broken write leaves the file as it was."""
        if self.path is None or not self.measured:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                json.dump(self.times, file)
            Path(file.name).replace(self.path)
        except OSError:
            # The times are measured again next time.
            return


def cache_folder() -> Path:
    """Where times are kept: ``$L0COMPRESS_CACHE``, or ``l0compress`` in the user's folder for caches."""
    named = os.environ.get("L0COMPRESS_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "l0compress" if base else Path.home() / ".cache" / "l0compress"
