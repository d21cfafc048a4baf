"""Memory: what loading an artifact and running it adds to a process of its own.

requires: an artifact that says which inputs it takes.
ensures:  bytes of resident memory, read before loading and after the last run; nothing stays behind.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch

from l0compress.errors import RunError
from l0compress.export.bundle_session import BundleSession, is_bundle
from l0compress.export.providers import CPU, on_provider
from l0compress.export.session import OnnxSession
from l0compress.measure import memory
from l0compress.measure.bench import call_of, open_candidate, runner
from l0compress.verification.calls import resized

RUNS = 3


def footprint(path: str | Path, *, batch_size: int = 1, threads: int = 1, provider: str = CPU) -> int:
    """Bytes of resident memory that an artifact takes: weights, prepared kernels and activations.

    It is measured in a fresh process, imports not counted: the difference between before loading and after three runs.

    Args:
        path: an artifact, as :func:`~l0compress.measure.bench.bench` takes it.
        batch_size: samples a run.
        threads: threads that it computes with.
        provider: what runs an ``.onnx`` file.

    Raises:
        RunError: the artifact cannot be loaded or run.

    Example:
        >>> import tempfile, l0compress as l0
        >>> graph = l0.capture(torch.nn.Linear(512, 2048), (torch.randn(2, 512),))
        >>> exported = l0.export_onnx(graph, Path(tempfile.mkdtemp(), "model.onnx"))
        >>> footprint(exported.path) > exported.size_bytes / 2
        True
    """
    path = Path(path)
    if is_bundle(path):
        return _without_torch(BundleSession(path, threads=threads), batch_size, threads)
    if path.suffix == ".onnx" and provider == CPU:
        return _without_torch(OnnxSession(path, threads=threads), batch_size, threads)
    return _printed(path, __name__, path, batch_size, threads, provider)


def _without_torch(session: OnnxSession | BundleSession, batch_size: int, threads: int) -> int:
    path = session.path
    feeds = session.feeds(resized(call_of([session]), batch_size))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "feeds.npz"), **cast("dict[str, Any]", feeds))
        return _printed(path, memory.__name__, path, Path(folder, "feeds.npz"), threads, RUNS)


def _printed(path: Path, module: str, *arguments: object) -> int:
    """What a module prints that is run with these arguments in a process of its own.

    Raises:
        RunError: it fails.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        lines = outcome.stderr.strip().splitlines()
        raise RunError(f"Cannot measure the memory of {path}: {lines[-1] if lines else 'the process died'}.")
    return int(outcome.stdout)


def _measure(path: str, batch_size: int, threads: int, provider: str) -> int:
    """What the fresh process does."""
    torch.set_num_threads(threads)
    process = psutil.Process()
    before = process.memory_info().rss
    with torch.inference_mode():
        opened = open_candidate(on_provider(Path(path), provider), threads)
        run = runner(opened, resized(call_of([opened]), batch_size))
        for _ in range(RUNS):
            run()
    return max(0, process.memory_info().rss - before)


if __name__ == "__main__":
    sys.stdout.write(str(_measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
