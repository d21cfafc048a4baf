"""What compressing a model comes to: one small model, or a family of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l0compress.errors import TargetError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups.cost import Cost, cost_lines
from l0compress.graph.nodes.describe import headed
from l0compress.training.evaluation import Evaluation
from l0compress.training.events import ProgressEvent
from l0compress.training.reading import Reading
from l0compress.training.targets import Target, told
from l0compress.verification.equality import Equality


@dataclass(frozen=True, eq=False)
class Scores:
    """The dense and the small model on the same part of the data."""

    dense: Evaluation
    small: Evaluation

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"dense": asdict(self.dense), "small": asdict(self.small)}


@dataclass(frozen=True)
class Reached:
    """What a small model uses of what one target allows.

    Attributes:
        target: what was asked for.
        limit: the most that it allows, in its unit.
        left: what is used, in the same unit.
    """

    target: Target
    limit: int
    left: int

    def __str__(self) -> str:
        """Return it as one line for people."""
        left, limit = (told(self.target.unit, number, named=False) for number in (self.left, self.limit))
        return f"{self.target}: {left} of at most {limit}"

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"unit": self.target.unit, "limit": self.limit, "reached": self.left}


@dataclass(frozen=True)
class Penalized:
    """The fixed penalty that stood in place of a target.

    Attributes:
        name: ``penalty``, ``aic`` or ``bic``.
        multiplier: the loss for each parameter.
    """

    name: str
    multiplier: float

    def __str__(self) -> str:
        """Return it as one line for people."""
        return f"{self.name}: {self.multiplier:.4g} for each parameter"

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class CompressResult:
    """What :func:`~l0compress.compress` returns.

    Attributes:
        dense: the captured model, as it was given.
        masked: the dense-shaped model with the trained weights and removed channels silenced; equal to ``small``.
        small: the smaller model, best by validation; ``small.module()`` is an ``nn.Module``.
        plan: which channels were kept.
        budgets: what each target allows, and what is used of that; empty under a fixed penalty.
        penalty: the fixed penalty; None under targets.
        dense_cost, small_cost: what both cost by their shapes.
        nonzero_cost: what ``small`` costs when the zeros in its weights are left out; None where no single weights were
            removed. With it, the target is on this.
        val, test: both on the validation and the test part; ``test`` is None where the data has none.
        equality: how closely ``small`` and ``masked`` agree.
        history: one event for every epoch.
        reading: how outputs and targets were read: what the metrics mean.
        folder: where the run is kept; None where it is not.
    """

    dense: CapturedGraph
    masked: CapturedGraph
    small: CapturedGraph
    plan: KeepPlan
    budgets: tuple[Reached, ...]
    dense_cost: Cost
    small_cost: Cost
    nonzero_cost: Cost | None
    val: Scores
    test: Scores | None
    equality: Equality
    history: tuple[ProgressEvent, ...]
    reading: Reading
    penalty: Penalized | None = None
    folder: Path | None = None

    def __repr__(self) -> str:
        scores = [("val", self.val), *([("test", self.test)] if self.test is not None else [])]
        lines = [
            *cost_lines(self.dense_cost, self.nonzero_cost or self.small_cost),
            *(f"{part} {s.dense.metric_name}: {s.dense.metric:.4g} -> {s.small.metric:.4g}" for part, s in scores),
            f"small and masked model agree within {self.equality.max_relative:.2g}",
        ]
        return headed(f"CompressResult({'; '.join(map(str, self.budgets or [self.penalty]))})", lines)

    @property
    def target(self) -> Target:
        """The budget; the first one where there are several in :attr:`budgets`."""
        return self._first.target

    @property
    def limit(self) -> int:
        """The most that :attr:`target` allows, in its unit."""
        return self._first.limit

    @property
    def reached(self) -> int:
        """What is left, in the unit of :attr:`target`."""
        return self._first.left

    @property
    def _first(self) -> Reached:
        if not self.budgets:
            raise TargetError(
                f"this result has no target: it was made under a fixed penalty ({self.penalty}).",
                fix="Read what is left from small_cost, or nonzero_cost for single weights.",
            )
        return self.budgets[0]


@dataclass(frozen=True, eq=False)
class FamilyResult:
    """What :func:`~l0compress.compress_family` returns.

    Attributes:
        members: what :func:`~l0compress.compress` would return for each target, from the largest to the smallest.
        folder: where the family is kept; None where it is not.
    """

    members: tuple[CompressResult, ...]
    folder: Path | None = None

    def __repr__(self) -> str:
        score = self.members[0].val.dense.metric_name
        lines = [f"{one.budgets[0]}, val {score} {one.val.small.metric:.4g}" for one in self.members]
        return headed(f"FamilyResult(val {score} of dense: {self.members[0].val.dense.metric:.4g})", lines)
