"""What is logged of a run, as numbers by tag and step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from l0compress.pipeline.run_result import targets_in
from l0compress.training.events import ProgressEvent
from l0compress.training.state_dicts import FINETUNE, GATES, SPARSIFY

# The stages whose events say something of a network that is trained, of the dense one, or where a run goes on.
RESUMED, LEARNING = "resumed", (GATES, SPARSIFY, FINETUNE)
_LOGGED = ("dense", *LEARNING)


def is_logged(event: ProgressEvent) -> bool:
    """Whether an event says something to log; what the last step of an epoch leaves is said at the epoch's close.

    >>> is_logged(ProgressEvent("gates", 1, 4, epoch_done=False, step=9, steps=10))
    True
    >>> is_logged(ProgressEvent("gates", 1, 4, epoch_done=False, step=10, steps=10))
    False
    """
    return event.stage == RESUMED or (event.stage in _LOGGED and (event.epoch_done or event.step < event.steps))


def step_of(event: ProgressEvent) -> int:
    """How many steps of all epochs are done.

    >>> step_of(ProgressEvent("gates", 3, 4, step=5, steps=10)), step_of(ProgressEvent("dense", 0, 4))
    (25, 0)
    """
    return max(event.epoch - 1, 0) * event.steps + event.step


def scalars(event: ProgressEvent) -> dict[str, float]:
    """What is logged of an event, by tag.

    >>> scalars(ProgressEvent("finetune", 3, 4, loss=0.5, metric=0.75, density=0.25, learning_rate=0.01))
    {'epoch': 3, 'val/accuracy': 0.75, 'density': 0.25, 'train/epoch_loss': 0.5, 'learning_rate': 0.01}
    """
    values: dict[str, float | None] = {"epoch": event.epoch}
    if event.metric is not None:
        values[f"val/{event.metric_name}"] = event.metric
    if event.stage in LEARNING:
        values |= {"density": event.density, "train/epoch_loss" if event.epoch_done else "train/loss": event.loss}
    if event.stage == GATES:
        values |= {"moves": event.num_moves, **_told(asdict(event))}
    if event.stage == FINETUNE:
        values["learning_rate"] = event.learning_rate
    for unit, constraint in event.constraints.items():
        values |= {f"{name}/{unit}": number for name, number in _told(constraint).items()}
    finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return {} if event.stage == RESUMED else named_for(finite, event.member)


def _told(constraint: Mapping[str, float]) -> dict[str, float]:
    """How much of a budget the network would use, and what that weighs in the loss; its density where that is all."""
    if "violation" not in constraint:
        return dict(constraint)
    return {"budget_use": math.exp(constraint["violation"]), "multiplier": constraint["multiplier"]}


def outcome(result: Mapping[str, Any]) -> dict[str, float]:
    """What is logged of a result: costs, scores, and how much of each budget is used."""
    values: dict[str, float] = {}
    for name in ("dense", "small", "nonzero"):
        values |= {f"{name}/{unit}": count for unit, count in (result[name] or {}).items()}
    for part in ("val", "test"):
        scores = result[part] or {}
        values |= {f"{part}/{name}/{scores[name]['metric_name']}": scores[name]["metric"] for name in scores}
    used = {target["unit"]: target["reached"] / target["limit"] for target in targets_in(result)}
    return {**values, **{f"budget_use/{unit}": share for unit, share in used.items()}}


def named_for(values: Mapping[str, float], member: str) -> dict[str, float]:
    """The tags of a family's member; MLflow's may have no ``=``.

    >>> named_for({"density": 0.5}, "macs=0.4")
    {'macs-0.4/density': 0.5}
    """
    return {f"{member.replace('=', '-')}/{name}" if member else name: value for name, value in values.items()}


def plain(settings: Mapping[str, Any], within: str = "") -> dict[str, bool | int | float | str]:
    """Settings as trackers take them: numbers and texts by their names; what is not chosen is left out.

    >>> plain({"lr": None, "epochs": 4, "target": ["macs=0.5", "bytes=0.5"], "gates": {"share": 0.5}})
    {'epochs': 4, 'target': 'macs=0.5, bytes=0.5', 'gates.share': 0.5}
    """
    found: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= plain(value, f"{within}{name}.")
        elif isinstance(value, list | tuple):
            found[within + name] = ", ".join(map(str, value))
        elif value is not None:
            found[within + name] = value if isinstance(value, bool | int | float) else str(value)
    return found
