"""Timing: several models in one process, taking turns, so that all of them meet the machine in the same moods.

requires: candidates that accept the same inputs.
ensures:  latencies of whole calls, with the thread count that they were taken with; inputs are converted beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from l0compress.devices import device_of, synchronize
from l0compress.errors import NOTHING_RUN, InputError, RunError
from l0compress.export.bundle_session import BundleSession, Session, is_bundle
from l0compress.export.files import size_on_disk
from l0compress.export.huggingface.session import FolderSession, is_model_folder
from l0compress.export.providers import OnProvider
from l0compress.export.pt2 import captured_pt2
from l0compress.export.session import OnnxSession
from l0compress.graph.capture import CapturedGraph
from l0compress.progress import Stages, tell
from l0compress.verification.calls import Call, checked_batch_sizes, example_call, resized
from l0compress_runtime.timing import Turns, in_turns

Candidate: TypeAlias = "str | Path | OnProvider | CapturedGraph | nn.Module | Callable[..., Any]"

BATCH_SIZES = (1, 8, 64)
WARMUP_CALLS = 5
CALLS_A_ROUND = 5
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """The latency of one candidate at one batch size.

    Attributes:
        name: the candidate.
        batch_size: samples a call.
        num_calls: calls that were timed.
        median_ms: half of the calls took no longer than this, in milliseconds.
        p95_ms: 95 % of the calls took no longer than this, in milliseconds.
        samples_per_second: throughput at the median.
    """

    name: str
    batch_size: int
    num_calls: int
    median_ms: float
    p95_ms: float
    samples_per_second: float


@dataclass(frozen=True)
class BenchReport:
    """What :func:`bench` measured.

    Attributes:
        threads: threads that each candidate could use.
        timings: one for each candidate and batch size.
        file_bytes: size of each candidate's file; None where it is not a file.
        memory_bytes: what each candidate takes of a process's memory, where that was measured.
    """

    threads: int
    timings: tuple[Timing, ...]
    file_bytes: dict[str, int | None]
    memory_bytes: dict[str, int] = field(default_factory=dict)

    def timing(self, name: str, batch_size: int) -> Timing:
        """The timing of one candidate at one batch size.

        Raises:
            KeyError: there is none.
        """
        found = {(timing.name, timing.batch_size): timing for timing in self.timings}
        return found[name, batch_size]

    def speedup(self, name: str, against: str, batch_size: int) -> float:
        """How many times faster than ``against`` a candidate is, by the medians."""
        return self.timing(against, batch_size).median_ms / self.timing(name, batch_size).median_ms

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that were timed, in order."""
        return tuple(dict.fromkeys(timing.batch_size for timing in self.timings))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {
            "threads": self.threads,
            "candidates": [
                {"name": name, "file_bytes": size, "memory_bytes": self.memory_bytes.get(name)}
                for name, size in self.file_bytes.items()
            ],
            "timings": [asdict(timing) for timing in self.timings],
        }


def bench(
    candidates: Mapping[str, Candidate],
    inputs: Call | CapturedGraph | None = None,
    *,
    batch_sizes: Sequence[int] | int = BATCH_SIZES,
    threads: int = 2,
    rounds: int = 20,
    max_seconds: float = 20.0,
) -> BenchReport:
    """Time candidates in turns: in each round every candidate gets one call untimed and then five timed ones.

    The untimed call lets caches fill and the threads of the candidate before go to sleep. The order rotates from round
    to round.

    Args:
        candidates: by name: an ``.onnx`` or ``.pt2`` file, an ``.onnx`` file with what is to run it, a folder of
            transformers, a captured graph, a module in eval mode, or any callable.
        inputs: a call whose rows are drawn from, or the graph whose example inputs serve; by default the example inputs
            of the first graph or ``.pt2`` file, or else noise of the shapes that the first ``.onnx`` file names.
        batch_sizes: samples a call.
        threads: threads for torch (restored afterwards) and for each ONNX Runtime session.
        rounds: rounds at each batch size.
        max_seconds: no new round begins after this long at one batch size, except for the first three.

    Raises:
        InputError: no candidates, a batch size, thread or round count below 1, or no inputs; a candidate does not
            take the inputs.
        RunError: a file is missing, unreadable or of another kind.

    Example:
        >>> report = bench({"dense": nn.Linear(4, 2).eval()}, Call((torch.randn(2, 4),)), batch_sizes=(1,), rounds=3)
        >>> report.timing("dense", 1).num_calls
        15
    """
    batch_sizes = checked_batch_sizes(batch_sizes)
    counts = [type(count) is int and count >= 1 for count in (threads, rounds)]
    if not candidates or not all(counts):
        raise InputError(
            f"{len(candidates)} candidates, threads={threads!r}, rounds={rounds!r}: timing needs at least one of "
            "each, as integers.",
            fix="",
            assurance=NOTHING_RUN,
        )
    opened = {name: open_candidate(candidate, threads) for name, candidate in candidates.items()}
    call = call_of([inputs] if inputs is not None else list(opened.values()))
    turns = Turns(max_seconds, rounds, FEWEST_ROUNDS, CALLS_A_ROUND, WARMUP_CALLS)
    timings: list[Timing] = []
    stages = Stages([1] * len(batch_sizes))
    with _threads(threads), torch.inference_mode():
        for batch_size in batch_sizes:
            sized = resized(call, batch_size)
            runners = {name: runner(candidate, sized) for name, candidate in opened.items()}
            with stages.stage(f"batch {batch_size}"):
                taken = in_turns(runners, turns, on_round=partial(tell, ""))
            timings += [_summary(name, batch_size, nanoseconds) for name, nanoseconds in taken.items()]
    files = {name: _file_of(candidate) for name, candidate in candidates.items()}
    sizes = {name: None if file is None else size_on_disk(file) for name, file in files.items()}
    return BenchReport(threads, tuple(timings), sizes)


def _file_of(candidate: Candidate) -> Path | None:
    if isinstance(candidate, OnProvider):
        return candidate.path
    return Path(candidate) if isinstance(candidate, str | Path) else None


def open_candidate(candidate: Candidate, threads: int | None) -> Session | CapturedGraph | Callable[..., Any]:
    """A file as what runs it; anything else as it is.

    Raises:
        InputError: the provider does not run files here.
        RunError: the file is missing, unreadable or of another kind.
    """
    if isinstance(candidate, OnProvider):
        return OnnxSession(candidate.path, threads=threads, provider=candidate.provider)
    if not isinstance(candidate, str | Path):
        return candidate
    path = Path(candidate)
    if is_bundle(path):
        return BundleSession(path, threads=threads)
    if is_model_folder(path):
        return FolderSession(path)
    if path.suffix == ".onnx":
        return OnnxSession(path, threads=threads)
    if path.suffix == ".pt2":
        return captured_pt2(path)
    raise RunError(
        f"cannot time {path}: it is not an .onnx file, a .pt2 file or a bundle.", fix="", assurance=NOTHING_RUN
    )


def call_of(sources: Sequence[Any]) -> Call:
    """The inputs that the first of several opened candidates says it takes.

    Raises:
        InputError: none of them says so.
    """
    for source in sources:
        if isinstance(source, Call):
            return source
        if isinstance(source, CapturedGraph):
            return example_call(source)
    for source in sources:
        if isinstance(source, Session):
            return source.example_call()
    raise InputError("no candidate records its inputs.", fix="Pass inputs=Call((x,)).", assurance=NOTHING_RUN)


def runner(candidate: Session | CapturedGraph | Callable[..., Any], call: Call) -> Callable[[], Any]:
    """One call of an opened candidate, with its inputs already converted, and on the candidate's device.

    Raises:
        InputError: the candidate does not take the inputs, or is in training mode.
    """
    if isinstance(candidate, Session):
        candidate(*call.args, **call.kwargs)
        return candidate.bound(call)
    model = candidate.module() if isinstance(candidate, CapturedGraph) else candidate
    device = device_of(model) if isinstance(model, nn.Module) else None
    if isinstance(model, nn.Module) and model.training:
        raise InputError(
            f"{type(model).__name__} is in training mode.", fix="Call .eval() on it first.", assurance=NOTHING_RUN
        )
    if device is None or device.type == "cpu":
        return lambda: model(*call.args, **call.kwargs)
    there = call.to(device)

    def run() -> Any:
        result = model(*there.args, **there.kwargs)
        synchronize(device)  # a GPU returns before it is done
        return result

    return run


def _summary(name: str, batch_size: int, nanoseconds: list[int]) -> Timing:
    median_ms, p95_ms = (float(value) / 1e6 for value in np.percentile(nanoseconds, [50, 95]))
    return Timing(name, batch_size, len(nanoseconds), median_ms, p95_ms, 1000 * batch_size / median_ms)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's thread count, restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
