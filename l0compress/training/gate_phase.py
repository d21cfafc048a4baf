"""The first phase: gates and weights are trained together under a budget, and what is surely closed is removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.gates.attach import Compacted, GatedNetwork, compact, compact_again
from l0compress.training.budget import Penalty
from l0compress.training.compaction import removal_macs, saved_macs
from l0compress.training.evaluation import Evaluation
from l0compress.training.expected_norms import ExpectedNorms
from l0compress.training.optim import carry_state_, schedule_for, set_learning_rate_, update_, weight_optimizer
from l0compress.training.problem import Problem
from l0compress.training.regularisers import regularise_
from l0compress.training.stage import Optimizers, Phase
from l0compress.training.state_dicts import GATES, StateDict, prefixed, under


class GatePhase(Phase):
    """Trains ``gated`` in place until the first removal makes a smaller network of it.

    Attributes:
        gated: what is left of the network.
        moves: the original index of each move that is left, int64.
        cuts: the removals so far, each as the moves that it kept.
        refused: a removal was found to be impossible, and none is tried again.
    """

    name = GATES

    def __init__(self, problem: Problem, gated: GatedNetwork, budget: Penalty, *, num_steps: int | None = None) -> None:
        self.problem, self.gated, self.budget, self.scaler = problem, gated, budget, problem.scaler()
        regularise_(gated.network, gated.groups.graph, problem.settings)
        self._held = problem.held(gated)
        self.steps = range(problem.gated_steps if num_steps is None else num_steps)
        self.moves = torch.arange(gated.groups.num_moves)
        self.cuts: list[Tensor] = []
        self.refused = False
        self._norms = ExpectedNorms(*problem.settings.norm_strengths)
        settings = problem.settings
        base, floor = settings.rate * settings.gates.weight_rate_share, settings.gates.weight_rate_floor
        self._rate = schedule_for(settings, base, len(self.steps), floor=floor)
        self._create_optimizers_()

    @property
    def network(self) -> nn.Module:
        return self._held.network

    def whole_network(self) -> GatedNetwork:
        self._held.gather_()
        return self.gated

    def optimizers(self) -> Optimizers:
        gates = self.gated.gate_parameters()
        return {"weights": (self._weights, self._parameters), "gates": (self._gates, gates)}

    def regularized(self, loss: Tensor) -> Tensor:
        loss = loss + self.budget.penalty()
        return loss + self._norms.of(self.gated) if self._norms.matter else loss

    def step_(self, progress: float) -> None:
        settings = self.problem.settings
        base = settings.rate * settings.gates.weight_rate_share
        set_learning_rate_(self._weights, self._rate(progress), highest=base)
        update_(self._parameters.values(), (self._weights, self._gates), clip=settings.clip, scaler=self.scaler)
        self.budget.step()
        done = round(progress * len(self.steps)) + 1
        if done % settings.gates.compact_every == 0:
            self._compact_(steps_left=len(self.steps) - done)

    def end_epoch_(self, epoch: int) -> Evaluation:
        self._compact_(steps_left=max(0, self.steps.stop - (epoch + 1) * self.problem.steps_per_epoch))
        return self.problem.evaluate(self.network)

    def _compact_(self, *, steps_left: int) -> None:
        """Remove what is surely shut, if that saves enough in the steps that are left."""
        settings = self.problem.settings.gates
        threshold, samples = settings.compact_below, steps_left * self.problem.batch_size
        if self.refused or not self.gated.groups.num_moves:
            return
        saved = saved_macs(self.gated, threshold=threshold, samples=samples)
        if saved == 0 or saved < settings.compact_gain * removal_macs(self.gated.groups.graph):
            return
        compacted = compact(self.whole_network(), threshold=threshold)
        self.refused = compacted.gated is self.gated
        self._held.part_()
        if self.refused:
            return
        old, parameters, weights, gates = self.gated, self._parameters, self._weights, self._gates
        self._replace_network_(compacted)
        self._create_optimizers_()
        pairs = _pairs(parameters, self._parameters)
        carry_state_(self._weights, weights, pairs, compacted.parameter_keeps)
        pairs = _pairs(old.gate_parameters(), self.gated.gate_parameters())
        carry_state_(self._gates, gates, pairs, compacted.gate_keeps)

    def report(self, progress: float) -> dict[str, Any]:
        del progress
        return {**self.budget.report(), "num_moves": self.gated.groups.num_moves}

    def state_dict(self) -> StateDict:
        return {
            "budget": self.budget.state_dict(),
            "cuts": len(self.cuts),
            "refused": self.refused,
            **{f"cuts.{position}": kept for position, kept in enumerate(self.cuts)},
            **prefixed("network", self._held.tensors()),
            **self.optimizers_state(),
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Cut the dense network as it was cut then, and load what was learned since."""
        for position in range(state_dict["cuts"]):
            self._replace_network_(compact_again(self.whole_network(), state_dict[f"cuts.{position}"]))
        self._held.load_(under("network", state_dict))
        self._create_optimizers_()
        self.load_optimizers_state_(state_dict)
        self.budget.load_state_dict(state_dict["budget"])
        self.refused = bool(state_dict.get("refused"))

    def _replace_network_(self, compacted: Compacted) -> None:
        self.cuts.append(compacted.kept_moves)
        self.gated, self.moves = compacted.gated, self.moves[compacted.kept_moves]
        regularise_(self.gated.network, self.gated.groups.graph, self.problem.settings)
        self._held = self.problem.held(self.gated)
        self.budget.follow_(self.gated, compacted.kept_moves)

    def _create_optimizers_(self) -> None:
        settings = self.problem.settings
        self._parameters = self._held.parameters_of(self.gated.weights())
        self._weights = weight_optimizer(
            self._parameters,
            settings.optimizer,
            learning_rate=settings.rate * settings.gates.weight_rate_share,
            # The expected norms decay weights as far as they are there, in place of this.
            weight_decay=0.0 if self._norms.matter else settings.weight_decay,
        )
        # Gates move fast and are not decayed, whatever optimizer the weights have.
        rate = settings.gates.rate_for(len(self.steps))
        self._gates = torch.optim.Adam(list(self.gated.gate_parameters().values()), lr=rate, fused=True)


def _pairs(
    before: Mapping[str, nn.Parameter], after: Mapping[str, nn.Parameter]
) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    return {name: (before[name], parameter) for name, parameter in after.items()}
