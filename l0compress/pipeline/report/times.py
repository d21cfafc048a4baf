"""Where the time goes in dense and small: both as ONNX files, in ONNX Runtime's own profiler."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from l0compress.errors import InputError, SurgeryError
from l0compress.export.onnx import write_onnx
from l0compress.export.pt2 import captured_pt2
from l0compress.latency.kinds import time_by_kind
from l0compress.measure.page.content import Kind
from l0compress.pipeline.machine import machine
from l0compress.pipeline.report.told import DENSE, Told
from l0compress.progress import Stages
from l0compress.verification.calls import example_call, resized

_MOST, _OTHERS = 9, "all others"


def profiles_of(report: Told, *, batch: int, threads: int) -> dict[str, dict[str, float]]:
    """Return microseconds by kind of operator for the dense model and each small one.

    Raises:
        SurgeryError: one of them cannot be written as ONNX.
        InputError: the file does not take such a batch, or ONNX Runtime lacks an operator of it.
    """
    files = {DENSE: report.first.dense, **{name: run.small for name, run in report.members.items()}}
    call = resized(example_call(captured_pt2(report.first.dense)), batch)
    profiles, stages = {}, Stages([1] * len(files))
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, path) in enumerate(files.items()):
            written = Path(folder, f"{number}.onnx")
            with stages.stage(name):
                write_onnx(captured_pt2(path), written)
                profiles[name] = time_by_kind(written, call, threads=threads)
    return profiles


def kinds_of(profiles: Mapping[str, Mapping[str, float]]) -> tuple[Kind, ...]:
    """Return the kinds of operators that take most time in any of the models, and the rest as one.

    Example:
        >>> [kind.times for kind in kinds_of({"dense": {"Gemm": 4.0, "Relu": 1.0}, "small": {"Gemm": 2.0}})]
        [(('dense', 4.0, 1.0), ('small', 2.0, 0.5)), (('dense', 1.0, 0.25), ('small', 0.0, 0.0))]
    """
    names = list(dict.fromkeys(kind for times in profiles.values() for kind in times))
    names.sort(key=lambda kind: -max(times.get(kind, 0.0) for times in profiles.values()))
    shown, rest = (names, []) if len(names) <= _MOST + 1 else (names[:_MOST], names[_MOST:])
    rows = {kind: {name: times.get(kind, 0.0) for name, times in profiles.items()} for kind in shown}
    if rest:
        rows[_OTHERS] = {name: sum(times.get(kind, 0.0) for kind in rest) for name, times in profiles.items()}
    longest = max((time for row in rows.values() for time in row.values()), default=0.0) or 1.0
    return tuple(Kind(kind, tuple((name, us, us / longest) for name, us in row.items())) for kind, row in rows.items())


def times_of(report: Told, *, batch: int, threads: int) -> tuple[tuple[Kind, ...], str]:
    """Return the rows of the drawing, and what was measured how; no rows, and why, where that is not possible."""
    try:
        profiles = profiles_of(report, batch=batch, threads=threads)
    except (SurgeryError, InputError) as reason:
        return (), f"Not measured: {reason}"
    totals = {name: sum(times.values()) for name, times in profiles.items()}
    said = ", ".join(f"{name} {total:,.1f} µs" for name, total in totals.items())
    return kinds_of(profiles), (
        f"Kernels of one call of ONNX Runtime {version('onnxruntime')}, batch {batch}, {threads} "
        f"thread{'s' if threads != 1 else ''}, medians, on {machine()['cpu']}. Together: {said}. What lies between "
        "kernels is not counted."
    )
