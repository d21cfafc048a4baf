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
    ends = _ends(rows)
    spans = _spans(rows, ends)
    name = str(rows[0].get("metric_name", "score"))
    reached = tuple(
        (at, float(row["metric"])) for at, row in zip(ends, rows, strict=True) if row.get("metric") is not None
    )
    dense = float(report.first.result["val"][DENSE]["metric"])
    score = [
        Series(f"validation {name}", reached),
        Series(f"dense, {dense:.4f}", ((0.0, dense), (ends[-1], dense)), dashed=True),
    ]
    drawings = (
        curves(f"Validation {name} after each epoch", score, spans),
        curves(
            "Share of the dense model's cost that is left", [*_densities(rows, ends), *_limits(report, spans)], spans
        ),
    )
    return tuple(drawing for drawing in drawings if drawing is not None)


def _ends(rows: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Where each row stands on an axis of epochs: a phase may end within one, and a family's members follow each other.

    >>> rows = [(0, 0, 0), (1, 20, 32), (1, 32, 32), (2, 32, 32), (1, 32, 32)]
    >>> _ends([dict(zip(("epoch", "step", "steps"), row)) for row in rows])
    (0.0, 0.625, 1.0, 2.0, 3.0)
    """
    found: list[float] = []
    before = within = 0.0
    for row in rows:
        done = max(0.0, row["epoch"] - 1 + row["step"] / max(1, row["steps"]))
        if done < within:
            before += within
        within = done
        found.append(before + within)
    return tuple(found)


def _spans(rows: Sequence[Mapping[str, Any]], ends: Sequence[float]) -> list[Span]:
    """Members of a family, or the phases of a single run; the dense model's own row is in the first of them."""
    found: list[Span] = []
    for label, members in groupby(zip(rows, ends, strict=True), key=lambda item: _label(item[0])):
        last = list(members)[-1][1]
        if label:
            found.append(Span(label, found[-1].end if found else 0.0, last))
    return found


def _label(row: Mapping[str, Any]) -> str:
    stage = str(row["stage"])
    return str(row.get(MEMBER, "")) or _STAGES.get(stage, stage)


def _densities(rows: Sequence[Mapping[str, Any]], ends: Sequence[float]) -> list[Series]:
    units = list(dict.fromkeys(unit for row in rows for unit in row.get("constraints", ())))
    if not units:
        return [Series("density", tuple((at, float(row["density"])) for at, row in zip(ends, rows, strict=True)))]
    return [
        Series(
            f"density in {unit}",
            tuple(
                (at, float(row["constraints"][unit]["density"]))
                for at, row in zip(ends, rows, strict=True)
                if unit in row.get("constraints", {})
            ),
        )
        for unit in units
    ]


def _limits(report: Told, spans: Sequence[Span]) -> list[Series]:
    """What each budget allows, as a share of the dense model, over the epochs that it holds for."""
    last = spans[-1].end if spans else 0.0
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
