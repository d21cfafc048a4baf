"""The process that :func:`~l0compress.measure.footprint.footprint` starts for an ONNX file on the CPU.

It imports ONNX Runtime and no torch, since a file has no use for torch, which takes seconds to import.

    python -m l0compress.measure.onnx_memory FILE FEEDS.npz THREADS RUNS    # prints bytes
"""

from __future__ import annotations

import sys

import numpy as np
import psutil

from l0compress_runtime.sessions import open_session


def measured(path: str, feeds: str, *, threads: int, runs: int) -> int:
    """Bytes of resident memory that loading a file and running it a few times adds to this process."""
    with np.load(feeds) as arrays:
        inputs = dict(arrays)
    process = psutil.Process()
    before = process.memory_info().rss
    session = open_session(path, threads=threads)
    for _ in range(runs):
        session.run(None, inputs)
    return max(0, process.memory_info().rss - before)


if __name__ == "__main__":
    sys.stdout.write(str(measured(sys.argv[1], sys.argv[2], threads=int(sys.argv[3]), runs=int(sys.argv[4]))))
