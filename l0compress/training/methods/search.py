"""Search: the densities of all groups by a tree-structured Parzen estimator, on the loss after repair.

``argmax over d of p(d | loss below a quantile) / p(d | loss above it)``, group by group. Source: Bergstra et
al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, section 4; the estimator is Optuna's: Akiba et al.,
"Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019. Densities of layers by search on the
validation loss: He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l0compress.loading.references import import_extra
from l0compress.training.methods.density_search import LEAST, DensitySearch, Proposer, Trials

# Trials at random before the estimator has anything to estimate from.
_AT_RANDOM = 8
_WORST = 1e300


class ParzenEstimator(Proposer):
    """Optuna's, told all trials anew each time, with a seed for each."""

    def __init__(self) -> None:
        self._optuna = import_extra("optuna", extra="search", purpose="Method 'search'")

    def propose(self, trials: Trials, *, seed: int) -> Tensor:
        optuna = self._optuna
        names = [f"group {number}" for number in range(trials.densities.shape[1])]
        spaces = {name: optuna.distributions.FloatDistribution(LEAST, 1.0) for name in names}
        sampler = optuna.samplers.TPESampler(n_startup_trials=_AT_RANDOM, seed=_seed_of(seed, len(trials)))
        told = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(sampler=sampler)
            for densities, loss in zip(trials.densities.tolist(), trials.losses.tolist(), strict=True):
                params = dict(zip(names, densities, strict=True))
                value = min(loss, _WORST)
                study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value))
            params = study.ask(spaces).params
        finally:
            optuna.logging.set_verbosity(told)
        return torch.tensor([params[name] for name in names], dtype=torch.float64)


class Search(DensitySearch):
    """Densities by Optuna."""

    name = "search"

    def make_proposer(self) -> Proposer:
        return ParzenEstimator()


def _seed_of(seed: int, number: int) -> int:
    """A seed of its own for each trial of each run.

    >>> len({_seed_of(seed, number) for seed in range(30) for number in range(30)})
    900
    """
    return (seed * 1_000_003 + number) % 2**32
