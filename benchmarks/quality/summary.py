"""Rows of several seeds as one, and methods against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from quality.cells import DENSE, RIVALS, Cell
from quality.problem import Score
from quality.records import Row

OURS = "l0"


@dataclass(frozen=True)
class Setting:
    """A cell without its seed."""

    task: str
    granularity: str
    unit: str
    budget: float
    epochs: int
    method: str

    @classmethod
    def of(cls, cell: Cell) -> Setting:
        return cls(cell.task, cell.granularity, cell.unit, cell.budget, cell.epochs, cell.method)


@dataclass(frozen=True)
class Summary:
    """All seeds of one setting."""

    setting: Setting
    rows: tuple[Row, ...]

    @property
    def tests(self) -> list[float]:
        return [row.test for row in self.rows]

    @property
    def test(self) -> float:
        """The mean over seeds of the score on the test part."""
        return mean(self.tests)

    def spread(self, digits: int) -> str:
        """Mean, least and most on the test part, as ``88.12 (87.90-88.30)``."""
        if len(self.rows) == 1:
            return f"{self.test:.{digits}f}"
        return f"{self.test:.{digits}f} ({min(self.tests):.{digits}f}-{max(self.tests):.{digits}f})"


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """One for each setting, in the order in which they come first."""
    groups: dict[Setting, list[Row]] = {}
    for row in rows:
        groups.setdefault(Setting.of(row.cell), []).append(row)
    return [Summary(setting, tuple(group)) for setting, group in groups.items()]


def dense_for(found: Sequence[Summary], task: str, epochs: int) -> Summary | None:
    """The dense model of a task, trained on for so many epochs; None where it was not measured."""
    dense = (one for one in found if (one.setting.task, one.setting.method) == (task, DENSE))
    return next((one for one in dense if one.setting.epochs == epochs), None)


@dataclass(frozen=True)
class Duel:
    """Learned gates against the best of the others, at one budget and number of epochs.

    ``lead`` is by how much the means differ, above 0 where the gates are better; ``clear`` says that there are several
    seeds and they do not overlap.
    """

    ours: Summary
    rival: Summary
    lead: float
    clear: bool

    @property
    def doubt(self) -> str:
        """How the difference compares with that between seeds, in words."""
        if min(len(self.ours.rows), len(self.rival.rows)) == 1:
            return "with one seed"
        return "by more than the seeds differ" if self.clear else "within what the seeds differ by"


def duels(found: Sequence[Summary], score: Score, task: str, *, of_other_projects: bool = False) -> list[Duel]:
    """One for each budget and number of epochs that both were measured at: against our other methods, or theirs."""
    mine = [one for one in found if one.setting.task == task and one.setting.method == OURS]
    fought = []
    for ours in mine:
        others = [one for one in found if _same(one.setting, ours.setting) and one.setting.method not in (OURS, DENSE)]
        rivals = [one for one in others if (one.setting.method in RIVALS) == of_other_projects]
        if rivals:
            rival = min(rivals, key=lambda one: score.better(ours.test, one.test))
            lead = score.better(ours.test, rival.test)
            gaps = [score.better(a, b) for a in ours.tests for b in rival.tests]
            several = min(len(ours.rows), len(rival.rows)) > 1
            fought.append(Duel(ours, rival, lead, clear=several and (min(gaps) > 0 or max(gaps) < 0)))
    return fought


def _same(one: Setting, other: Setting) -> bool:
    def place(setting: Setting) -> tuple[object, ...]:
        return setting.task, setting.granularity, setting.budget, setting.epochs

    return place(one) == place(other)
