"""What ``bench RUN`` measured last, kept in the run's folder for its report.

It is no part of the run: the manifest does not name it, and it can be removed or measured again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l0compress.measure.bench import BenchReport, Timing
from l0compress.measure.pareto import Point, Tradeoff
from l0compress.pipeline.durable import write_durably
from l0compress.pipeline.machine import machine
from l0compress.pipeline.run_result import json_bytes

BENCH = "bench.json"


@dataclass(frozen=True)
class KeptBench:
    """What was measured: the timings, each form's score, when that was, and on which machine."""

    report: BenchReport
    tradeoff: Tradeoff
    time: str
    machine: Mapping[str, Any]


def keep_bench(folder: Path, report: BenchReport, tradeoff: Tradeoff) -> tuple[str, ...]:
    """Write down what was measured of a run; returns why that was not possible, nothing where it was."""
    scores = {point.name: point.score for point in tradeoff.points}
    content = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "score": tradeoff.score_name,
        "higher_is_better": tradeoff.higher_is_better,
        "references": list(tradeoff.references),
        "scores": scores,
        "bench": report.to_json(),
    }
    try:
        write_durably(folder / BENCH, json_bytes(content))
    except OSError as error:
        return (f"Not kept for l0compress report: cannot write {str(folder / BENCH)!r}: {error.strerror}.",)
    return ()


def kept_bench(folder: Path) -> KeptBench | None:
    """Return what was measured of a run last; None where nothing was, or it cannot be read any more."""
    try:
        content = json.loads((folder / BENCH).read_text(encoding="utf-8"))
        report = _report(content["bench"])
        points = tuple(
            Point(
                name,
                float(score),
                report.file_bytes[name] or 0,
                {size: report.timing(name, size).median_ms for size in report.batch_sizes},
            )
            for name, score in content["scores"].items()
        )
        tradeoff = Tradeoff(
            points, content["score"], content["higher_is_better"], report.threads, tuple(content["references"])
        )
        return KeptBench(report, tradeoff, content["time"], content["machine"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _report(content: Mapping[str, Any]) -> BenchReport:
    candidates = content["candidates"]
    memory = {one["name"]: one["memory_bytes"] for one in candidates if one["memory_bytes"] is not None}
    timings = tuple(Timing(**timing) for timing in content["timings"])
    return BenchReport(content["threads"], timings, {one["name"]: one["file_bytes"] for one in candidates}, memory)
