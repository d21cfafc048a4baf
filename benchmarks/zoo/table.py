"""From results to ``docs/zoo.md``: totals, one row a model, then the reasons."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

FAILURES = ("wrong", "crash")
TOLERANCE_64 = 1e-10
TOLERANCE_ONNX = 1e-5
LEAST_CHANGE = 1e-3


def verdict_of(row: Row) -> str:
    """``exact``, ``vacuous``, ``frozen``, ``not captured``, ``limit``, ``wrong`` or ``crash``."""
    if "verdict" in row:
        return str(row["verdict"])
    if "independent" not in row:
        return "limit"
    if not row["error64"] <= TOLERANCE_64 or not row["independent"] <= TOLERANCE_64 or not row["cost_exact"]:
        return "wrong"
    if row.get("onnx", 0) > TOLERANCE_ONNX:
        return "wrong"
    if row.get("onnx_error") and not row.get("dense_onnx_error"):
        return "wrong"
    if "away" in row and not row["away"] >= LEAST_CHANGE:
        return "vacuous"
    return "exact"


def written(rows: Mapping[str, Row], catalogue: list[str]) -> str:
    return ""
