"""The trials of a sweep as a study of Optuna, in a journal in its folder, which optuna-dashboard reads."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING

from l0compress.pipeline import runs
from l0compress.pipeline.sweep import Sweep, Trial
from l0compress.pipeline.sweep_result import result_of
from l0compress.training.settings import METHOD_NAMES

if TYPE_CHECKING:
    import optuna

JOURNAL, NAME = "optuna.log", "sweep"
_RUN = "run"
# Wide enough for whatever a sweep may grow to: Optuna compares the ranges of all trials.
_MOST = 1e18


class Study:
    """Where finished trials are recorded; nowhere, where Optuna is not installed."""

    def record(self, trial: Trial) -> None:
        """Record a trial, if it is finished and not recorded yet."""


class _OptunaStudy(Study):
    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._study: optuna.Study | None = None

    def record(self, trial: Trial) -> None:
        import optuna

        if not self._sweep.is_finished(trial):
            return
        found = result_of(Sweep(self._sweep.folder, self._sweep.shared, (trial,)), {})
        (outcome,) = found.outcomes
        study = self._opened(found.higher_is_better, found.score_name)
        if any(one.user_attrs.get(_RUN) == trial.name for one in study.get_trials(deepcopy=False)):
            return
        unit = trial.target.unit
        study.add_trial(
            optuna.trial.create_trial(
                params={"method": trial.method, "seed": trial.seed, unit: float(trial.target.value)},
                distributions={
                    "method": optuna.distributions.CategoricalDistribution(METHOD_NAMES),
                    "seed": optuna.distributions.IntDistribution(0, 2**63 - 1),
                    unit: optuna.distributions.FloatDistribution(0.0, _MOST),
                },
                values=[outcome.score, outcome.cost.macs / outcome.dense_cost.macs],
                user_attrs={_RUN: trial.name, runs.RESULT: vars(outcome.cost)},
            )
        )

    def _opened(self, higher_is_better: bool, score: str) -> optuna.Study:
        if self._study is not None:
            return self._study
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self._sweep.folder / JOURNAL))),
                study_name=NAME,
                directions=["maximize" if higher_is_better else "minimize", "minimize"],
                load_if_exists=True,
            )
            self._study.set_metric_names([score, "share of the MACs"])
        return self._study


def study_in(sweep: Sweep) -> Study:
    """The study of a sweep."""
    return Study() if importlib.util.find_spec("optuna") is None else _OptunaStudy(sweep)
