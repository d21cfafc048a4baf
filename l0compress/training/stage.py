"""A part of a run that has a state of its own, and those parts that train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from l0compress.training.evaluation import Evaluation
from l0compress.training.problem import Problem
from l0compress.training.state_dicts import (
    StateDict,
    load_optimizer_,
    load_own_state_,
    load_scaler_,
    optimizer_tensors,
    own_state,
    prefixed,
    scaler_state,
    under,
)

Optimizers: TypeAlias = Mapping[str, tuple[Optimizer, Mapping[str, nn.Parameter]]]


class Stage(ABC):
    """A part of a run that has a state of its own.

    Attributes:
        name: what events and state dicts call it.
        steps: those of the run that the stage has, counted from 0; maybe none. Two stages may share an epoch.
    """

    name: ClassVar[str]
    steps: range

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """What is worked on: nobody should go on from a state in which a weight of it is not finite."""

    def begin_(self) -> None:
        """Called at the beginning, unless a state is loaded; some stages have nothing to do then."""
        return

    @abstractmethod
    def state_dict(self) -> StateDict:
        """What the stage has changed so far."""

    @abstractmethod
    def load_state_dict(self, state_dict: StateDict) -> None:
        """Go on from what :meth:`state_dict` returned; called once, on a stage that has not begun."""


class Phase(Stage):
    """What one phase of a run trains: a network with its optimizers.

    Attributes:
        problem: the run's, with what the phase does differently.
        scaler: what the loss is scaled by before it is differentiated, if anything.
    """

    problem: Problem
    scaler: torch.amp.GradScaler

    @property
    def epochs(self) -> range:
        """The epochs that the phase has a part of."""
        size = self.problem.steps_per_epoch
        return range(self.steps.start // size, -(-self.steps.stop // size))

    def steps_in(self, epoch: int) -> range:
        """The steps of an epoch that belong to the phase, counted within it."""
        size = self.problem.steps_per_epoch
        return range(max(0, self.steps.start - epoch * size), min(size, self.steps.stop - epoch * size))

    @abstractmethod
    def optimizers(self) -> Optimizers:
        """What updates what, by the names that states use; "weights" may be one of the user's own."""

    def optimizers_state(self) -> StateDict:
        """What the optimizers and the scaler have learned: a part of :meth:`state_dict`."""
        state = scaler_state(self.scaler)
        for name, (optimizer, parameters) in self.optimizers().items():
            state |= prefixed(f"optimizer.{name}", optimizer_tensors(optimizer, parameters))
            state |= own_state(optimizer, parameters)
        return state

    def load_optimizers_state_(self, state_dict: StateDict) -> None:
        """Give fresh optimizers and a fresh scaler what :meth:`optimizers_state` returned."""
        for name, (optimizer, parameters) in self.optimizers().items():
            load_optimizer_(optimizer, parameters, under(f"optimizer.{name}", state_dict))
            load_own_state_(optimizer, parameters, state_dict)
        load_scaler_(self.scaler, state_dict)

    def epoch_problem(self) -> Problem:
        """The problem of the next epoch."""
        return self.problem

    def regularized(self, loss: Tensor) -> Tensor:
        """The loss of a batch with what is minimised beside it."""
        return loss

    def whole_network(self) -> nn.Module:
        """The network with all of its weights, where each process has a part of them."""
        return self.network

    @abstractmethod
    def step_(self, progress: float) -> None:
        """Update what is trained by its gradients, and clear them; ``progress`` is the share of the phase done."""

    @abstractmethod
    def end_epoch_(self, epoch: int) -> Evaluation:
        """What is done between epochs, and the validation result of the network that the next one begins with."""

    @abstractmethod
    def report(self, progress: float) -> dict[str, Any]:
        """The fields of a progress event that are the phase's own."""
