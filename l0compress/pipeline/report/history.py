"""Score and density over the epochs of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from l0compress.measure.page.curves import Curves, Series, Span, curves
from l0compress.pipeline.report.told import DENSE, Told
from l0compress.pipeline.run_result import targets_in
from l0compress.training.state_dicts import MEMBER

_STAGES = {"gates": "gates", "finetune": "fine-tuning", "cut": "cutting", "harden": "deciding", DENSE: ""}


def history_of(report: Told) -> tuple[Curves, ...]:
    """Return the score of every epoch beside the dense model's, and the density beside what the budget allows."""
    rows = report.rows
    if len(rows) < 2:
        return ()
    spans = _spans(rows)
    name = str(rows[0].get("metric_name", "score"))
    reached = tuple((float(at), float(row["metric"])) for at, row in enumerate(rows) if row.get("metric") is not None)
    dense = float(report.first.result["val"][DENSE]["metric"])
    score = [
        Series(f"validation {name}", reached),
        Series(f"dense, {dense:.4f}", ((0.0, dense), (float(len(rows) - 1), dense)), dashed=True),
    ]
    drawings = (
        curves(f"Validation {name} after each epoch", score, spans),
        curves("Share of the dense model's cost that is left", [*_densities(rows), *_limits(report, spans)], spans),
    )
    return tuple(drawing for drawing in drawings if drawing is not None)


def _spans(rows: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Members of a family, or the phases of a single run; the dense model's own row is in the first of them."""
    last = len(rows) - 1
    found: list[Span] = []
    for label, members in groupby(enumerate(rows), key=lambda item: _label(item[1])):
        ends = [at for at, _ in members]
        if label:
            found.append(Span(label, ends[0] - 0.5 if found else 0.0, min(ends[-1] + 0.5, last)))
    return found


def _label(row: Mapping[str, Any]) -> str:
    stage = str(row["stage"])
    return str(row.get(MEMBER, "")) or _STAGES.get(stage, stage)


def _densities(rows: Sequence[Mapping[str, Any]]) -> list[Series]:
    units = list(dict.fromkeys(unit for row in rows for unit in row.get("constraints", ())))
    if not units:
        return [Series("density", tuple((float(at), float(row["density"])) for at, row in enumerate(rows)))]
    return [
        Series(
            f"density in {unit}",
            tuple(
                (float(at), float(row["constraints"][unit]["density"]))
                for at, row in enumerate(rows)
                if unit in row.get("constraints", {})
            ),
        )
        for unit in units
    ]


def _limits(report: Told, spans: Sequence[Span]) -> list[Series]:
    """What each budget allows, as a share of the dense model, over the epochs that it holds for."""
    last = float(len(report.rows) - 1)
    within = {span.name: (span.start, span.end) for span in spans}
    steps: dict[str, list[tuple[float, float]]] = {}
    for name, run in report.members.items():
        start, end = within.get(name, (0.0, last))
        for target in targets_in(run.result):
            whole = run.result[DENSE].get(target["unit"])
            if whole:
                share = target["limit"] / whole
                steps.setdefault(target["unit"], []).extend(((start, share), (end, share)))
    named = {unit: f"budget in {unit}" if len(steps) > 1 else "budget" for unit in steps}
    return [Series(named[unit], tuple(points), dashed=True) for unit, points in steps.items()]
