"""Timing whole files: what a user will run, exported and measured beside the dense model, in turns.

requires: graphs that were cut from one dense graph.
ensures:  times of all of them under the same conditions of the machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from l0compress.export.onnx import write_onnx
from l0compress.export.quantize import Int8, quantize_onnx
from l0compress.export.session import OnnxSession
from l0compress.graph.capture import CapturedGraph
from l0compress.latency.deployment import Deployment
from l0compress.verification.calls import example_call, resized
from l0compress_runtime.timing import Turns, in_turns

# Long enough for a median that another run repeats within about a hundredth.
SECONDS = 6.0
_ROUNDS, _FEWEST = 60, 5
Run = Callable[[], Any]


@dataclass(frozen=True)
class Files:
    """Opens graphs as the files that they are exported to."""

    deployment: Deployment

    def opened(self, graph: CapturedGraph) -> Run:
        """A function that runs the file of ``graph`` on a batch of the deployment's size, drawn from example inputs.

        Raises:
            SurgeryError: the graph cannot be exported, or not quantized.
        """
        call = example_call(graph)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "float.onnx")
            write_onnx(graph, path)
            if self.deployment.int8:
                source, path = path, path.with_name("int8.onnx")
                static = Int8().method_for(source) == "static"
                quantize_onnx(source, path, calibration=[call] if static else None, sample=call)
            session = OnnxSession(path, threads=self.deployment.threads)
            return session.bound(resized(call, self.deployment.batch))


class Timer(Protocol):
    """Times small networks."""

    def time(self, small: CapturedGraph) -> float:
        """Nanoseconds of ``small``."""
        ...


class Beside:
    """Times small networks in turns with the dense one, so that a machine that is slower by now does not matter.

    Args:
        dense: the dense graph.
        files: opens graphs.
        dense_ns: its time when it was measured first.
        run: runs its file, where that is open already.
        seconds: how long a comparison may take.
    """

    def __init__(
        self,
        dense: CapturedGraph,
        files: Files,
        dense_ns: float,
        *,
        run: Run | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self._dense, self._files, self._dense_ns, self._run, self._seconds = dense, files, dense_ns, run, seconds

    def __getstate__(self) -> dict[str, Any]:
        """An open session cannot be written down; the next comparison opens it again."""
        return {**self.__dict__, "_run": None}

    def time(self, small: CapturedGraph) -> float:
        """Nanoseconds of ``small`` on the machine as it was when the dense network was measured first."""
        if self._run is None:
            self._run = self._files.opened(self._dense)
        dense_now, small_now = times_in_turns([self._run, self._files.opened(small)], seconds=self._seconds)
        return small_now / dense_now * self._dense_ns


def times_in_turns(runs: Sequence[Run], *, seconds: float = SECONDS) -> list[float]:
    """The median nanoseconds of each, all taken in turns."""
    turns = Turns(seconds, _ROUNDS, _FEWEST)
    taken = in_turns({str(number): run for number, run in enumerate(runs)}, turns)
    return [float(np.median(nanoseconds)) for nanoseconds in taken.values()]
