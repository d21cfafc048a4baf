"""What a training run tells while it runs: frozen events, handed to a callback."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from l0compress.errors import DataWarning

WARNING = "warning"
DECIDED = "decided"
CUT = "cut"
MEASURE = "measure"


@dataclass(frozen=True)
class ProgressEvent:
    """One report of a run.

    ``stage`` is "measure" (of a latency; ``message`` says of what), "dense", "cut" (a step of a decision without
    training), "search" (a trial of one), "gates", "sparsify" (the same part of the epochs by another method), "harden"
    or "finetune". An event with ``epoch_done`` closes an epoch and carries the validation metric; the others come in
    between, for a live display.
    ``density`` is (expected) cost after removal over dense cost in the budget's unit, ``violation`` is ``log E[cost] -
    log target_now`` (<= 0 is feasible). Of several budgets at once these are of the one that is furthest from being
    met; ``constraints`` then has the same numbers of each of them, by unit.

    Before all others come those of the stage "warning", if there are any: what is odd about data or model, in
    ``message``; ``category`` is the class of Python's warning that says the same. One of the stage "decided" says, in
    ``message`` too, which of several decisions the run goes on with, or which units leave for never firing.

    ``member`` is the member of a family that is being made, by its target; epochs are counted anew for each.
    """

    stage: str
    epoch: int
    epochs: int
    epoch_done: bool = True
    step: int = 0
    steps: int = 0
    loss: float | None = None
    metric: float | None = None
    metric_name: str = "accuracy"
    density: float = 1.0
    violation: float = 0.0
    multiplier: float = 0.0
    learning_rate: float = 0.0
    num_moves: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    message: str = ""
    category: type[Warning] = DataWarning
    constraints: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    member: str = ""

    def row(self) -> dict[str, Any]:
        """The event as a dict that JSON can hold; a number that is not finite becomes None.

        >>> ProgressEvent("gates", 1, 4, loss=float("inf")).row()["loss"] is None
        True
        """
        values = asdict(self)
        del values["category"]
        for name in ("constraints", "message", "member"):
            if not values[name]:
                del values[name]
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


def warning(message: str, category: type[Warning] = DataWarning, *, epochs: int = 0) -> ProgressEvent:
    """The event that says something odd, in a run of so many epochs.

    >>> warning("sorted by class", epochs=4).row()["message"]
    'sorted by class'
    """
    return ProgressEvent(WARNING, 0, epochs, epoch_done=False, message=message, category=category)


def densities_told(densities: Mapping[str, float]) -> dict[str, Any]:
    """The fields of an event that say how much is left, by unit, of what may be used; the largest is the density.

    >>> densities_told({"macs": 0.5}), densities_told({"macs": 0.5, "bytes": 0.75})["density"]
    ({'density': 0.5}, 0.75)
    """
    return told({unit: {"density": density} for unit, density in densities.items()}, key="density")


def told(constraints: Mapping[str, Mapping[str, float]], *, key: str) -> dict[str, Any]:
    """The fields of an event: those of the constraint with the largest ``key``, and where there are several, of all."""
    first = max(constraints.values(), key=lambda values: values[key])
    return {**first, **({"constraints": constraints} if len(constraints) > 1 else {})}


OnEvent = Callable[[ProgressEvent], None]


def unheard(event: ProgressEvent) -> None:
    """The callback of a process for which another one speaks: nothing is said twice."""
    del event


def ignore(event: ProgressEvent) -> None:
    """The callback of those who do not listen: what is odd becomes a warning of Python's.

    Warns:
        DataWarning, LostInCaptureWarning, PenaltyWarning: for every event of the stage "warning", by its category.
    """
    if event.stage == WARNING:
        warnings.warn(event.message, event.category, stacklevel=2)
