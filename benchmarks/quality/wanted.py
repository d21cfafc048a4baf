"""What the numbers have to be, and whether they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quality.problem import Score
from quality.published import LENET_5, LENET_300_100, SPARSE_LENET_5, SPARSE_LENET_300_100, Published
from quality.summary import OURS, Summary, dense_for

MOST_SECONDS = 180


@dataclass(frozen=True)
class Want:
    """A bound on the mean test score of learned gates.

    ``above_dense`` says that ``bound`` is by how much worse than the dense model, as it was given, they may be.
    """

    task: str
    budget: float
    epochs: int
    bound: float
    source: str = ""
    granularity: str = "structured"
    above_dense: bool = False
    most_seconds: float | None = None


def _of(task: str, rows: Sequence[Published], granularity: str = "structured") -> list[Want]:
    return [Want(task, row.params, 48, row.error, f"{row.method} {row.left}", granularity) for row in rows]


WANTED: tuple[Want, ...] = (
    Want("sst2", 0.5, 4, 88.0),
    Want("sst2", 0.25, 4, 87.0),
    Want("sst2", 0.67, 0, 87.04, "onnxsim 0.8.1, calibrated and its ridge", most_seconds=MOST_SECONDS),
    Want("sst2", 0.5, 0, 86.5, most_seconds=MOST_SECONDS),
    Want("sst2", 0.35, 0, 86.0, most_seconds=MOST_SECONDS),
    Want("sst2", 0.25, 0, 83.0, most_seconds=MOST_SECONDS),
    Want("resnet20", 0.5, 10, 1.0, above_dense=True),
    Want("resnet20", 0.74, 10, 0.3, above_dense=True),
    Want("resnet20", 0.74, 0, 3.0, above_dense=True),
    *_of("lenet300", LENET_300_100),
    *_of("lenet300", SPARSE_LENET_300_100, "weights"),
    *_of("lenet5", LENET_5),
    *_of("lenet5", SPARSE_LENET_5, "weights"),
    Want("stories260k", 0.5, 10, 0.25, above_dense=True),
    Want("stories260k", 0.7, 10, 0.10, above_dense=True),
)


def checked(want: Want, found: Sequence[Summary], score: Score) -> tuple[str, bool] | None:
    """A want in words with the number that was reached, and whether it holds; None where it was not measured."""
    setting = (want.task, want.granularity, want.budget, want.epochs, OURS)
    ours = next((one for one in found if _place(one) == setting), None)
    dense = dense_for(found, want.task, 0)
    if ours is None or (want.above_dense and dense is None):
        return None
    bound = want.bound
    if want.above_dense and dense is not None:
        bound = dense.test - want.bound if score.higher_is_better else dense.test + want.bound
    # What else the machine was busy with does not count.
    seconds = max(row.cpu_seconds / row.threads for row in ours.rows)
    holds = score.better(ours.test, bound) >= 0
    comparison = "at least" if score.higher_is_better else "at most"
    words = (
        f"{want.task}, {want.budget:,} {ours.setting.unit}, {want.epochs} epochs: {score.name} "
        f"{ours.spread(score.digits)}, wanted {comparison} {bound:.{score.digits}f}"
    )
    if want.source:
        words += f" ({want.source})"
    if want.above_dense:
        words += " (from the dense model)"
    if want.most_seconds is not None:
        words += f", in {seconds:.0f} s, wanted at most {want.most_seconds:.0f}"
        holds &= seconds <= want.most_seconds
    return words, holds


def _place(one: Summary) -> tuple[str, str, float, int, str]:
    setting = one.setting
    return setting.task, setting.granularity, setting.budget, setting.epochs, setting.method
