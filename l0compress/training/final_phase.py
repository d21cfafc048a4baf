"""The final phase: the hardened model's weights alone are trained, at a rate that falls to 0 by a cosine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.training.evaluation import Evaluation
from l0compress.training.events import densities_told
from l0compress.training.fake_quantization import fake_quantized
from l0compress.training.held import whole
from l0compress.training.optim import schedule_for, set_learning_rate_, update_, weight_optimizer
from l0compress.training.problem import Problem
from l0compress.training.regularisers import regularise_
from l0compress.training.settings import FinetuneSettings
from l0compress.training.sparsity import NO_MASKS, keep_zeros_
from l0compress.training.stage import Optimizers, Phase
from l0compress.training.state_dicts import FINETUNE, StateDict, prefixed, under
from l0compress.training.teacher import outgrown
from l0compress.training.ternary import ternarised, ternary_network_, ternary_weights


class FinalPhase(Phase):
    """Trains a copy of ``small``, and remembers its best state by validation, where later ones win ties.

    Args:
        teacher: the dense model's validation result.
        densities: by unit, cost over dense cost; they are only reported.
        masks: weights that these drop are zero and stay it.
        begins: the first of the run's steps that is the phase's; None where gates had whole epochs.

    Attributes:
        best, last: validation results of the best state and of the last; ``best_epoch`` is counted within the phase.
    """

    name = FINETUNE
    best: Evaluation
    last: Evaluation

    def __init__(
        self,
        problem: Problem,
        small: CapturedGraph,
        *,
        teacher: Evaluation,
        densities: Mapping[str, float],
        masks: Mapping[str, Tensor] = NO_MASKS,
        begins: int | None = None,
    ) -> None:
        settings = problem.settings
        self.problem = replace(problem, objective=replace(problem.objective, temperature=settings.final_temperature))
        begins = problem.gated_steps if begins is None else begins
        self.steps = range(begins, settings.epochs * problem.steps_per_epoch)
        self._small, self._teacher, self._densities = small, teacher, densities
        network = as_measured(small, settings)
        self._ternary = ternary_weights(small, settings.keep_float) if settings.ternary else ()
        if self._ternary:
            ternary_network_(network, self._ternary)
        regularise_(network, small, settings)
        network = keep_zeros_(network.to(settings.device), masks)
        self._given, self._held = network, problem.held(network)
        self._parameters = self._held.parameters_of(dict(network.named_parameters()))
        self._optimizer = weight_optimizer(
            self._parameters, settings.optimizer, learning_rate=settings.rate, weight_decay=settings.weight_decay
        )
        self._rate = schedule_for(settings, settings.rate, len(self.steps))
        self.scaler = problem.scaler()
        self._best_state: dict[str, Tensor] = {}
        self.best_epoch = 0

    @property
    def network(self) -> nn.Module:
        return self._held.network

    def whole_network(self) -> nn.Module:
        self._held.gather_()
        return self._given

    def optimizers(self) -> Optimizers:
        return {"weights": (self._optimizer, self._parameters)}

    @property
    def best_graph(self) -> CapturedGraph:
        """The small graph with the best state."""
        return self._graph_with(self._best_state)

    @property
    def last_graph(self) -> CapturedGraph:
        """The small graph with the state that there is now."""
        return self._graph_with(self._held.tensors())

    def _graph_with(self, state: Mapping[str, Tensor]) -> CapturedGraph:
        return ternarised(self._small.with_state(_on_cpu(state)), self._ternary)

    def begin_(self) -> None:
        self.best = self.last = self.problem.evaluate(self.network)
        self._best_state = self._copied()

    def epoch_problem(self) -> Problem:
        if outgrown(self.problem.objective.reading, self.last, self._teacher):
            return replace(self.problem, teacher=None)
        return self.problem

    def step_(self, progress: float) -> None:
        settings = self.problem.settings
        set_learning_rate_(self._optimizer, self._rate(progress), highest=settings.rate)
        update_(self._parameters.values(), (self._optimizer,), clip=settings.clip, scaler=self.scaler)

    def end_epoch_(self, epoch: int) -> Evaluation:
        last, best = self.problem.evaluate(self.network), self.best
        if last.metric == best.metric or (last.metric > best.metric) == self.problem.objective.higher_is_better:
            self.best, self.best_epoch = last, epoch - self.epochs.start + 1
            self._best_state = self._copied()
        self.last = last
        return last

    def _copied(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._held.tensors().items()}

    def report(self, progress: float) -> dict[str, Any]:
        return {**densities_told(self._densities), "learning_rate": self._rate(progress)}

    def state_dict(self) -> StateDict:
        return {
            "best": self.best.to_json(),
            "last": self.last.to_json(),
            "best_epoch": self.best_epoch,
            **prefixed("network", self._held.tensors()),
            **prefixed("best", self._best_state),
            **self.optimizers_state(),
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._held.load_(under("network", state_dict))
        self.load_optimizers_state_(state_dict)
        self.best, self.last = (Evaluation.from_json(state_dict[name]) for name in ("best", "last"))
        self._best_state, self.best_epoch = self._held.divided(under("best", state_dict)), state_dict["best_epoch"]


def as_measured(small: CapturedGraph, settings: FinetuneSettings) -> GraphNetwork:
    """The network of a small graph by which the best state is chosen: rounded as it will be, where it will be."""
    return fake_quantized(small) if settings.quantization_aware else small.module()


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor).detach().cpu() for name, tensor in state.items()}
