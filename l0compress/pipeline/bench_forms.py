"""The forms of models that are timed against each other: the int8 form of each, and what all of them trade."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from l0compress.data import AnySplit
from l0compress.errors import NotEqualError, SurgeryError
from l0compress.export.quantize import Int8
from l0compress.measure.bench import BenchReport
from l0compress.measure.pareto import Point, Tradeoff
from l0compress.pipeline.quantizing import quantized_file
from l0compress.training.evaluation import Evaluation

# What forms are called: which model, and in which form its file is.
DENSE, SMALL = "dense", "small"
INT8, BUNDLE = " int8", " bundle"
ROUNDED = (INT8, " float16", " bfloat16")


def add_int8_(forms: dict[str, Path], name: str, train: AnySplit) -> tuple[str, ...]:
    """Add the int8 form of one of the forms; returns what to say where there is none."""
    target = forms[name].with_name(f"{name}.int8.onnx")
    try:
        quantized_file(forms[name], target, train, Int8())
    except (SurgeryError, NotEqualError) as reason:
        return (f"No int8 form of {name}: {reason}",)
    forms[name + INT8] = target
    return ()


def tradeoff_of(
    report: BenchReport,
    scores: Mapping[str, Evaluation],
    score_name: str,
    higher_is_better: bool,
    references: tuple[str, ...],
) -> Tradeoff:
    """Score against latency and size of files that were timed and scored."""
    points = (
        Point(
            name,
            score.metric,
            report.file_bytes[name] or 0,
            {size: report.timing(name, size).median_ms for size in report.batch_sizes},
        )
        for name, score in scores.items()
    )
    return Tradeoff(tuple(points), score_name, higher_is_better, report.threads, references)
