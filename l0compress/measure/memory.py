"""The process that :func:`~l0compress.measure.footprint.footprint` starts for an ONNX file on the CPU, or a bundle.

It imports what runs the artifact: no torch, which takes seconds to import, unless a bundle has a layer that torch runs.

    python -m l0compress.measure.memory FILE FEEDS.npz THREADS RUNS    # prints bytes
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from l0compress_runtime.bundle import load, read_manifest
from l0compress_runtime.manifest import DENSE
from l0compress_runtime.sessions import open_session


def measured(path: str, feeds: str, *, threads: int, runs: int) -> int:
    """Bytes of resident memory that loading an artifact and running it a few times adds to this process."""
    with np.load(feeds) as arrays:
        inputs = dict(arrays)
    onnx = Path(path).suffix == ".onnx"
    if not onnx:
        _import_engines(path)
    process = psutil.Process()
    before = process.memory_info().rss
    run = _loaded_onnx(path, threads) if onnx else load(path, threads=threads).run
    for _ in range(runs):
        run(inputs)
    return max(0, process.memory_info().rss - before)


def _loaded_onnx(path: str, threads: int) -> Callable[[Mapping[str, Any]], Any]:
    return partial(open_session(path, threads=threads).run, None)


def _import_engines(path: str) -> None:
    """Import the packages that a bundle's layers are run by, each of which has the name of its engine."""
    manifest = read_manifest(path)
    engines = {step.engine for _, plan in manifest.choices for step in manifest.plans[plan]}
    for engine in sorted(engines - {None, DENSE}, key=str):
        if find_spec(str(engine)) is not None:
            importlib.import_module(str(engine))


if __name__ == "__main__":
    sys.stdout.write(str(measured(sys.argv[1], sys.argv[2], threads=int(sys.argv[3]), runs=int(sys.argv[4]))))
