"""From results to ``docs/zoo.md``: totals, one row a model, then the reasons."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
Rows = Mapping[str, Row]

VERDICTS = (
    "exact",
    "frozen",
    "not captured",
    "does not run",
    "wrong",
    "crash",
    "no export",
    "vacuous",
    "limit",
    "not run",
)
FAILURES = ("wrong", "crash", "no export")
TOLERANCE_64 = 1e-10
TOLERANCE_ONNX = 1e-5
NOISE_FACTOR = 5  # by how much two roundings of one model may differ
LEAST_CHANGE = 1e-3
BARS = {"conv": ("prunable", 0.9), "transformer": ("inner_prunable", 0.6)}

INTRODUCTION = """# The zoo

Written by `make bench-zoo` (`benchmarks/zoo/`). Every model has random weights, batch norms with statistics of the
example varied by channel, and a random plan that keeps half the moves of every group.

- **exact**: the shrunk model equals the masked dense one in float64 (at most 1e-10, relative to the largest output),
  equals a reference that shares no code with masks, reads and surgery (weights' dropped columns zero, dropped rows
  filled with noise that nothing may read, or zero where attention multiplies them or a sum runs over them), has the
  predicted cost, and its ONNX file equals the masked model under ONNX Runtime at batches 2, 1 and 5 (at most 1e-5, or
  five times what float32 itself does to the masked model in PyTorch, where that is more). Where the dense model does
  not export to ONNX either, that last part is left out and the reason is listed.
- **exact by masks alone**: means over channels that have lost some (layer norms written by hand) are no matter of
  weights, so that the reference without masks does not apply; the masked model still does.
- **frozen**: nothing can be cut, with the reason. **not captured**: `torch.export` refuses the model. **does not run**:
  the model itself fails here, before anything else is tried (detectors need torchvision's compiled operators).
- **no export**: the dense model exports, the shrunk one does not. **limit**: stopped by the time or memory limit.
- *prunable* is the share of parameters that at least one move removes; *inner* the same without embedding tables and
  the layers whose rows are the model's output. *removed* is what this one plan took. *change* is how far the masked
  model is from the dense one, so that equality means something.
"""
RIVAL = """## Torch-Pruning on torchvision's classifiers

The same random weights in float64, `BasePruner` with magnitude importance, half of every layer, heads named, the
classifier left alone. *equal* means: the result computes the dense model with the columns of every dropped channel
zeroed. A result that does not may still be a fair start for fine-tuning, since it cuts through layer norms and rescales
attention on purpose.

"""
HEADER = (
    "model | verdict | parameters | prunable | inner | removed | float64 | independent | ONNX | change | "
    "group s | shrink s | export s | peak MB"
)


def verdict_of(row: Row) -> str:
    """One of :data:`VERDICTS`."""
    if "verdict" in row:
        return str(row["verdict"])
    if "independent" not in row:
        return "limit"
    if not row["error64"] <= TOLERANCE_64 or not (row["independent"] or 0) <= TOLERANCE_64 or not row["cost_exact"]:
        return "wrong"
    if row.get("onnx", 0) > max(TOLERANCE_ONNX, NOISE_FACTOR * row.get("noise", 0)):
        return "wrong"
    if row.get("onnx_error") and not row.get("dense_onnx_error"):
        return "no export"
    if "away" in row and not row["away"] >= LEAST_CHANGE:
        return "vacuous"
    return "exact"


def below_the_bar(row: Row) -> bool:
    """Whether fewer parameters can go than is wanted for this kind of network."""
    field, bar = BARS.get(str(row.get("kind")), ("prunable", 0.0))
    return field in row and row[field] < bar


def written(rows: Rows, catalogue: list[str]) -> str:
    """The whole page."""
    mine = {name: rows.get(name, {"verdict": "not run"}) for name in catalogue}
    rivals = {key.removeprefix("rival:"): row for key, row in rows.items() if key.startswith("rival:")}
    parts = [INTRODUCTION, _totals(mine), _rival_totals(rivals, mine), _models(mine), _low(mine), _reasons(mine)]
    return "\n".join([*parts, _rival_reasons(rivals)]).rstrip() + "\n"


def _origin(name: str) -> str:
    return name.split("/")[0]


def _table(header: str, lines: Iterable[str]) -> str:
    return "\n".join([f"| {header} |", "|---" * (header.count("|") + 1) + "|", *lines, ""])


def _totals(rows: Rows) -> str:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, row in rows.items():
        for origin in (_origin(name), "**all**"):
            counts[origin][verdict_of(row)] += 1
            counts[origin]["without ONNX"] += bool(verdict_of(row) == "exact" and "onnx" not in row)
            counts[origin]["masked"] += bool(verdict_of(row) == "exact" and row["independent"] is None)
            counts[origin]["bar"] += below_the_bar(row)
    shown = [verdict for verdict in VERDICTS if counts["**all**"][verdict] or verdict in ("exact", "wrong", "crash")]
    header = "origin | models | " + " | ".join(shown) + " | exact without ONNX | exact by masks alone | below the bar"
    lines = [
        f"| {origin} | {sum(found[verdict] for verdict in VERDICTS)} | "
        + " | ".join(str(found[verdict]) for verdict in shown)
        + f" | {found['without ONNX']} | {found['masked']} | {found['bar']} |"
        for origin, found in sorted(counts.items(), key=lambda item: item[0] == "**all**")
    ]
    note = "The bar: 90 % of the parameters of convolutional networks, 60 % of the inner ones of transformers.\n"
    return _table(header, lines) + "\n" + note


def _models(rows: Rows) -> str:
    lines = []
    for name, row in rows.items():
        seconds = row.get("seconds", {})
        cells = [name, verdict_of(row), f"{row['params']:,}" if "params" in row else ""]
        cells += [_percent(row.get(key)) for key in ("prunable", "inner_prunable")]
        cells += [_percent(1 - row["left"] if "left" in row else None)]
        cells += [_error(row.get(key)) for key in ("error64", "independent", "onnx", "away")]
        cells += [str(seconds.get(key, "")) for key in ("group", "shrink", "export")]
        lines.append("| " + " | ".join([*cells, str(row.get("peak_mb", ""))]) + " |")
    return "## Models\n\n" + _table(HEADER, lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def _low(rows: Rows) -> str:
    lines = [
        f"| {name} | {_percent(row['prunable'])} | {_percent(row['inner_prunable'])} | {_frozen(row)} |"
        for name, row in rows.items()
        if below_the_bar(row)
    ]
    return "## Below the bar\n\n" + _table("model | prunable | inner | what stays whole, and why (parameters)", lines)


def _frozen(row: Row) -> str:
    return "; ".join(f"{_flat(reason)} ({count:,})" for reason, count in row.get("frozen", [])[:3])


def _flat(text: str) -> str:
    text = re.sub(r"/\S*?/site-packages/", "", text)  # the page is not about the machine that wrote it
    return " ".join(text.replace("|", "/").split())[:300]


def _reasons(rows: Rows) -> str:
    lines = []
    for name, row in rows.items():
        if row.get("onnx_error"):
            dense = "the dense model does not export either: " if row.get("dense_onnx_error") else ""
            lines.append(f"| {name} | ONNX | {dense}{_flat(row['onnx_error'])} |")
        told = row.get("reason") or row.get("stopped")
        if told:
            lines.append(f"| {name} | {verdict_of(row)} | {_flat(told)} |")
    frozen = [
        f"| {name} | whole | {_frozen(row)} |"
        for name, row in rows.items()
        if row.get("frozen") and not row.get("reason")
    ]
    return "## Reasons\n\n" + _table("model | what | reason", [*lines, *frozen])


def _rival_totals(rivals: Rows, rows: Rows) -> str:
    if not rivals:
        return ""
    counts = Counter(_outcome(row) for row in rivals.values())
    mine = Counter(verdict_of(rows[name]) for name in rivals)
    lines = [f"| {outcome} | {count} |" for outcome, count in counts.most_common()]
    told = ", ".join(f"{verdict} {count}" for verdict, count in mine.most_common())
    return RIVAL + f"On the same {len(rivals)} models l0compress is: {told}.\n\n" + _table("outcome | models", lines)


def _outcome(row: Row) -> str:
    return str(row.get("outcome") or row.get("verdict") or ("limit" if row.get("stopped") else "unknown"))


def _rival_reasons(rivals: Rows) -> str:
    lines = []
    for name, row in rivals.items():
        left = _percent(1 - row["left"]) if "left" in row else ""
        reason = _flat(row.get("reason") or row.get("stopped") or "")
        lines.append(f"| {name} | {_outcome(row)} | {_error(row.get('error'))} | {left} | {reason} |")
    return (
        "## Torch-Pruning, by model\n\n" + _table("model | outcome | error | removed | reason", lines) if lines else ""
    )
