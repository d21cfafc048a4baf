"""The two phases of a run: gates and weights under the budget, then the hardened model's weights alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.gates.attach import Compacted, GatedNetwork, compact, compact_again
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.training.budget import Penalty
from l0compress.training.course import Course, Evaluation, Pass, evaluate, train_epoch
from l0compress.training.events import ProgressEvent
from l0compress.training.fake_quantization import fake_quantized
from l0compress.training.journal import Journal, evaluation_from, evaluation_values
from l0compress.training.optim import carry_state_, cosine, set_learning_rate_, weight_optimizer
from l0compress.training.snapshot import FINETUNE, GATES, Snapshot, load_optimizer_, optimizer_tensors, prefixed
from l0compress.training.sparsity import NO_MASKS, keep_zeros_
from l0compress.training.teaching import taught_by


@dataclass(frozen=True, eq=False)
class Gated:
    """The gated phase's result; ``moves`` is the original index of each move that is left."""

    network: GatedNetwork
    moves: Tensor


def train_gates(course: Course, gated: GatedNetwork, budget: Penalty, journal: Journal) -> Gated:
    """Train weights and gates together under ``budget``; what is surely closed is removed after every epoch.

    ``gated`` is trained in place until the first removal makes a smaller network of it.
    """
    epochs = course.settings.gated_epochs
    steps = journal.steps = course.steps_per_epoch
    stage = _GatedStage.of(gated, course, budget)
    start = journal.start_of(GATES)
    if start is not None:
        stage.restore_(start)
    current = journal.first_pass(course, start, epoch=0)
    for epoch in range(current.epoch, epochs):

        def keep(now: Pass = current) -> None:
            journal.offer_(course, GATES, now, stage.stand)

        step = _gate_step(course, stage, journal, epoch)
        loss = train_epoch(course, stage.gated, current, penalty=budget.penalty, step=step, done=keep)
        stage.compact_()
        measured = evaluate_on(course, stage.gated)
        event = _gate_event(epoch, budget, stage.gated, loss, steps, steps)
        journal.epoch_(replace(event, metric=measured.metric, metric_name=measured.metric_name))
        current = journal.next_pass(course, epoch + 1)
        journal.offer_(course, GATES, current, stage.stand, must=epoch + 1 == epochs)
    return Gated(stage.gated, stage.moves)


def _gate_step(course: Course, stage: _GatedStage, journal: Journal, epoch: int) -> Callable[[int, float], None]:
    epochs, steps = course.settings.gated_epochs, course.steps_per_epoch
    gated, budget = stage.gated, stage.budget

    def step(position: int, loss: float) -> None:
        stage.optimizers.step_(gated, (epoch + position / steps) / epochs, course)
        budget.step()
        journal.step_(lambda: _gate_event(epoch, budget, gated, loss, position + 1, steps))

    return step


@dataclass
class _GatedStage:
    """What the gated phase changes. ``cuts`` are the removals so far, each as the moves that it kept."""

    course: Course
    budget: Penalty
    gated: GatedNetwork
    moves: Tensor
    optimizers: _Optimizers
    cuts: list[Tensor]

    @classmethod
    def of(cls, gated: GatedNetwork, course: Course, budget: Penalty) -> _GatedStage:
        return cls(course, budget, gated, torch.arange(gated.groups.num_moves), _Optimizers.of(gated, course), [])

    def compact_(self) -> None:
        """Remove what is surely closed."""
        compacted = compact(self.gated, threshold=self.course.settings.gates.compact_below)
        if compacted.gated is not self.gated:
            self.optimizers = self.optimizers.sliced(self.gated, compacted, self.course)
            self._follow_(compacted)

    def _follow_(self, compacted: Compacted) -> None:
        self.cuts.append(compacted.kept_moves)
        self.gated, self.moves = compacted.gated, self.moves[compacted.kept_moves]
        self.budget.follow_(self.gated)

    def stand(self) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor]]:
        """The network, and what a snapshot needs of the phase."""
        tensors = {
            **prefixed("network", self.gated.state_dict()),
            **prefixed("optimizer.weights", optimizer_tensors(self.optimizers.weights, self.gated.weights())),
            **prefixed("optimizer.gates", optimizer_tensors(self.optimizers.gates, self.gated.gate_parameters())),
            **{f"cuts.{position}": kept for position, kept in enumerate(self.cuts)},
        }
        return self.gated, {"budget": self.budget.values(), "cuts": len(self.cuts)}, tensors

    def restore_(self, start: Snapshot) -> None:
        """Cut the dense network as it was cut then, and load what was learned since."""
        for position in range(start.values["cuts"]):
            self._follow_(compact_again(self.gated, start.tensors[f"cuts.{position}"]))
        self.gated.load_state_dict(start.under("network"))
        self.optimizers = _Optimizers.of(self.gated, self.course)
        load_optimizer_(self.optimizers.weights, self.gated.weights(), start.under("optimizer.weights"))
        load_optimizer_(self.optimizers.gates, self.gated.gate_parameters(), start.under("optimizer.gates"))
        self.budget.load_values_(start.values["budget"])


def evaluate_on(course: Course, network: nn.Module) -> Evaluation:
    """The validation result that choices are made by."""
    return evaluate(network, course.data.val, course.objective, teacher=course.teacher, device=course.settings.device)


def _gate_event(epoch: int, budget: Penalty, gated: GatedNetwork, loss: float, step: int, steps: int) -> ProgressEvent:
    return ProgressEvent(
        "gates",
        epoch + 1,
        0,
        step=step,
        steps=steps,
        loss=loss,
        density=budget.density,
        violation=budget.violation,
        multiplier=budget.multiplier,
        num_moves=gated.groups.num_moves,
    )


@dataclass(frozen=True, eq=False)
class _Optimizers:
    weights: torch.optim.Optimizer
    gates: torch.optim.Optimizer

    @classmethod
    def of(cls, gated: GatedNetwork, course: Course) -> _Optimizers:
        settings = course.settings
        weights = weight_optimizer(
            gated.weights(),
            settings.optimizer,
            learning_rate=settings.rate * settings.gates.weight_rate_share,
            weight_decay=settings.weight_decay,
        )
        # Gates move fast and are not decayed, whatever optimizer the weights have.
        rate = settings.gates.rate_for(course.gated_steps)
        return cls(weights, torch.optim.Adam(list(gated.gate_parameters().values()), lr=rate, fused=True))

    def step_(self, gated: GatedNetwork, progress: float, course: Course) -> None:
        settings = course.settings
        base = settings.rate * settings.gates.weight_rate_share
        set_learning_rate_(self.weights, base * cosine(progress, floor=settings.gates.weight_rate_floor))
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(gated.weights().values(), settings.clip)
        for optimizer in (self.weights, self.gates):
            optimizer.step()
            optimizer.zero_grad()

    def sliced(self, old: GatedNetwork, compacted: Compacted, course: Course) -> _Optimizers:
        new = _Optimizers.of(compacted.gated, course)
        before, after = old.weights(), compacted.gated.weights()
        pairs = {name: (before[name], parameter) for name, parameter in after.items()}
        carry_state_(new.weights, self.weights, pairs, compacted.parameter_keeps)
        gates_before = old.gate_parameters()
        gate_pairs = {name: (gates_before[name], gate) for name, gate in compacted.gated.gate_parameters().items()}
        carry_state_(new.gates, self.gates, gate_pairs, compacted.gate_keeps)
        return new


@dataclass(frozen=True, eq=False)
class Finished:
    """The final phase's result: the best state by validation and the last, each with its evaluation."""

    best: CapturedGraph
    best_epoch: int
    best_evaluation: Evaluation
    last: CapturedGraph
    last_evaluation: Evaluation


def train_small(
    course: Course,
    small: CapturedGraph,
    journal: Journal,
    *,
    density: float,
    first_epoch: int,
    masks: Mapping[str, Tensor] = NO_MASKS,
) -> Finished:
    """Train the hardened model's weights over what is left of the epochs, rate falling to 0 by a cosine.

    ``small`` is not changed; ``density`` is only reported. Weights that ``masks`` drop are zero and stay it.
    """
    settings = course.settings
    epochs = settings.epochs - first_epoch
    steps = journal.steps = course.steps_per_epoch
    start = journal.start_of(FINETUNE)
    network = fake_quantized(small) if settings.quantization_aware else small.module()
    stage = _SmallStage.of(keep_zeros_(network.to(settings.device), masks), course, start)
    current = journal.first_pass(course, start, epoch=first_epoch)
    for epoch in range(current.epoch - first_epoch, epochs):

        def step(position: int, loss: float, epoch: int = epoch) -> None:
            stage.step_(settings.rate * cosine((epoch + position / steps) / epochs), settings.clip)
            journal.step_(lambda: event(epoch, loss, position + 1))

        def event(epoch: int, loss: float, position: int) -> ProgressEvent:
            rate = settings.rate * cosine((epoch + position / steps) / epochs)
            number = first_epoch + epoch + 1
            return ProgressEvent(
                "finetune", number, 0, step=position, steps=steps, loss=loss, density=density, learning_rate=rate
            )

        def keep(now: Pass = current) -> None:
            journal.offer_(course, FINETUNE, now, stage.stand)

        taught = course if journal.dense is None else taught_by(course, stage.last, journal.dense)
        mean_loss = train_epoch(taught, stage.network, current, step=step, done=keep)
        last = stage.judge_(course, epoch + 1)
        closing = event(epoch, mean_loss, steps)
        journal.epoch_(replace(closing, metric=last.metric, metric_name=last.metric_name))
        current = journal.next_pass(course, first_epoch + epoch + 1)
        journal.offer_(course, FINETUNE, current, stage.stand, must=epoch + 1 == epochs)
    return stage.finished(small)


@dataclass
class _SmallStage:
    """What the final phase changes."""

    network: GraphNetwork
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    best_state: dict[str, Tensor]
    best: Evaluation
    last: Evaluation
    best_epoch: int = 0

    @classmethod
    def of(cls, network: GraphNetwork, course: Course, start: Snapshot | None) -> _SmallStage:
        settings = course.settings
        parameters = dict(network.named_parameters())
        optimizer = weight_optimizer(
            parameters, settings.optimizer, learning_rate=settings.rate, weight_decay=settings.weight_decay
        )
        if start is None:
            first = evaluate_on(course, network)
            return cls(network, parameters, optimizer, copy.deepcopy(network.state_dict()), first, first)
        network.load_state_dict(start.under("network"))
        load_optimizer_(optimizer, parameters, start.under("optimizer.weights"))
        best, last = (evaluation_from(start.values[name]) for name in ("best", "last"))
        return cls(network, parameters, optimizer, start.under("best"), best, last, start.values["best_epoch"])

    def step_(self, rate: float, clip: float | None) -> None:
        set_learning_rate_(self.optimizer, rate)
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def judge_(self, course: Course, epoch: int) -> Evaluation:
        """Measure the network, and keep its weights if none were better."""
        last, best = evaluate_on(course, self.network), self.best
        if last.metric == best.metric or (last.metric > best.metric) == course.objective.higher_is_better:
            self.best, self.best_epoch, self.best_state = last, epoch, copy.deepcopy(self.network.state_dict())
        self.last = last
        return last

    def stand(self) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor]]:
        """The network, and what a snapshot needs of the phase."""
        values = {name: evaluation_values(value) for name, value in (("best", self.best), ("last", self.last))}
        tensors = {
            **prefixed("network", self.network.state_dict()),
            **prefixed("best", self.best_state),
            **prefixed("optimizer.weights", optimizer_tensors(self.optimizer, self.parameters)),
        }
        return self.network, {**values, "best_epoch": self.best_epoch}, tensors

    def finished(self, small: CapturedGraph) -> Finished:
        best, last = (small.with_state(_on_cpu(state)) for state in (self.best_state, self.network.state_dict()))
        return Finished(best, self.best_epoch, self.best, last, self.last)


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in state.items()}
