"""The first phase of methods without learned gates: weights are trained while something makes them sparse."""

from __future__ import annotations

from typing import Any

import torch

from l0compress.gates.attach import GatedNetwork
from l0compress.training.evaluation import Evaluation
from l0compress.training.methods.pressure import Pressure
from l0compress.training.optim import schedule_for, set_learning_rate_, update_, weight_optimizer
from l0compress.training.problem import Problem
from l0compress.training.stage import Optimizers, Phase
from l0compress.training.state_dicts import SPARSIFY, StateDict, prefixed, under

# What a pressure learns may travel so many times from 1 to 0 in the whole phase; with a longer memory it would go on
# long after a norm has met its target.
_TRAVELS, _BETAS = 2.0, (0.5, 0.99)


class SparsifyPhase(Phase):
    """Trains the network of ``pressure``, at the rates at which gates and weights are trained together."""

    name = SPARSIFY

    def __init__(self, problem: Problem, pressure: Pressure) -> None:
        self.problem, self.pressure, self.scaler = problem, pressure, problem.scaler()
        self.steps = range(problem.gated_steps)
        settings = problem.settings
        self._weights = weight_optimizer(
            self.network.weights(),
            settings.optimizer,
            learning_rate=settings.rate * settings.gates.weight_rate_share,
            weight_decay=settings.weight_decay,
        )
        base, floor = settings.rate * settings.gates.weight_rate_share, settings.gates.weight_rate_floor
        self._rate = schedule_for(settings, base, problem.gated_steps, floor=floor)
        learned = list(pressure.learned().values())
        rate = _TRAVELS / max(problem.gated_steps, 1)
        self._optimizers = (self._weights, *([torch.optim.Adam(learned, lr=rate, betas=_BETAS)] if learned else []))

    @property
    def network(self) -> GatedNetwork:
        return self.pressure.network

    def optimizers(self) -> Optimizers:
        learned = self.pressure.learned()
        return {
            "weights": (self._weights, self.network.weights()),
            **({"learned": (self._optimizers[-1], learned)} if learned else {}),
        }

    def regularized(self, loss: torch.Tensor) -> torch.Tensor:
        return self.pressure.regularized(loss)

    def step_(self, progress: float) -> None:
        settings = self.problem.settings
        base = settings.rate * settings.gates.weight_rate_share
        set_learning_rate_(self._weights, self._rate(progress), highest=base)
        self.pressure.before_step_()
        update_(self.network.weights().values(), self._optimizers, clip=settings.clip, scaler=self.scaler)
        self.pressure.step_(progress + 1 / self.problem.gated_steps)

    def end_epoch_(self, epoch: int) -> Evaluation:
        del epoch
        return self.problem.evaluate(self.network)

    def report(self, progress: float) -> dict[str, Any]:
        return self.pressure.report(progress)

    def state_dict(self) -> StateDict:
        return {
            **prefixed("network", self.network.state_dict()),
            **self.optimizers_state(),
            **{f"pressure.{name}": value for name, value in self.pressure.state_dict().items()},
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.network.load_state_dict(under("network", state_dict))
        self.load_optimizers_state_(state_dict)
        self.pressure.load_state_dict(under("pressure", state_dict))
