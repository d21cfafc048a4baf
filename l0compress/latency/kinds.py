"""Where the time of a file goes, by the kind of operator, as ONNX Runtime's own profiler tells it.

requires: an ``.onnx`` file and a call that it takes.
ensures:  microseconds of the kernels of one call; what lies between kernels is not counted.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnxruntime

from l0compress.export.session import OnnxSession
from l0compress.verification.calls import Call
from l0compress_runtime.sessions import session_options

CALLS, WARMUP = 30, 5
_KERNEL = "_kernel_time"


def time_by_kind(path: Path, call: Call, *, threads: int = 1) -> dict[str, float]:
    """Return microseconds a call for each kind of operator in a file, the dearest first.

    The kinds are those that ONNX Runtime runs after its own optimizations, so that a fused operator has a name of its
    own. Each node counts with its median over the calls.

    Args:
        path: the ``.onnx`` file.
        call: the inputs.
        threads: threads within an operator.

    Raises:
        RunError: the file cannot be loaded.
        InputError: it does not take the call.

    Example:
        >>> import torch, l0compress as l0
        >>> from l0compress.verification.calls import example_call
        >>> graph = l0.capture(torch.nn.Linear(64, 32), (torch.randn(2, 64),))
        >>> exported = l0.export_onnx(graph, Path(tempfile.mkdtemp(), "model.onnx"))
        >>> list(time_by_kind(exported.path, example_call(graph)))
        ['Gemm']
    """
    feeds = OnnxSession(path, threads=threads).feeds(call)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads=threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(WARMUP + CALLS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    return kinds_of(events)


def kinds_of(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return microseconds a call by kind of operator from the events of a profile, the dearest first.

    >>> node = {"cat": "Node", "name": "a_kernel_time", "args": {"op_name": "Gemm", "node_index": "0"}}
    >>> kinds_of([node | {"dur": us} for us in (900, 900, 900, 900, 900, 3, 3, 4)])
    {'Gemm': 3.0}
    """
    taken: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL):
            taken[event["args"]["op_name"], event["args"]["node_index"]].append(event["dur"])
    kinds: defaultdict[str, float] = defaultdict(float)
    for (kind, _), durations in taken.items():
        kinds[kind] += float(statistics.median(durations[WARMUP:] or durations))
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))
