"""The two phases of a run: gates and weights under the budget, then the hardened model's weights alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from l0compress.gates.attach import Compacted, GatedNetwork, compact
from l0compress.graph.capture import CapturedGraph
from l0compress.training.budget import Penalty
from l0compress.training.course import Course, Evaluation, evaluate, train_epoch
from l0compress.training.events import OnEvent, ProgressEvent
from l0compress.training.optim import carry_state_, cosine, set_learning_rate_, weight_optimizer
from l0compress.training.sparsity import NO_MASKS, keep_zeros_

_SECONDS_BETWEEN_EVENTS = 0.5


@dataclass
class Journal:
    """Sends events and keeps those that close an epoch; knows how much of the run is left."""

    on_event: OnEvent
    epochs: int
    rows: list[ProgressEvent] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    last_sent: float = 0.0

    def epoch_(self, event: ProgressEvent) -> None:
        """Record and send the close of an epoch."""
        event = self._timed(event, epochs_done=event.epoch)
        self.rows.append(event)
        self.on_event(event)

    def step_(self, make_event: Callable[[], ProgressEvent]) -> None:
        """Send what happens inside an epoch, at most twice a second; an event is only made when it is due."""
        now = time.monotonic()
        if now - self.last_sent >= _SECONDS_BETWEEN_EVENTS:
            self.last_sent = now
            event = make_event()
            done = event.epoch - 1 + event.step / max(event.steps, 1)
            self.on_event(self._timed(replace(event, epoch_done=False), epochs_done=done))

    def _timed(self, event: ProgressEvent, *, epochs_done: float) -> ProgressEvent:
        seconds = time.monotonic() - self.started
        left = seconds / epochs_done * (self.epochs - epochs_done) if epochs_done > 0 else None
        return replace(event, epochs=self.epochs, seconds=seconds, seconds_left=left)


@dataclass(frozen=True, eq=False)
class Gated:
    """The gated phase's result; ``moves`` is the original index of each move that is left."""

    network: GatedNetwork
    moves: Tensor


def train_gates(course: Course, gated: GatedNetwork, budget: Penalty, journal: Journal) -> Gated:
    """Train weights and gates together under ``budget``; what is surely closed is removed after every epoch.

    ``gated`` is trained in place until the first removal makes a smaller network of it.
    """
    settings = course.settings
    epochs, steps = settings.gated_epochs, course.steps_per_epoch
    moves = torch.arange(gated.groups.num_moves)
    optimizers = _Optimizers.of(gated, course)
    for epoch in range(epochs):
        step = _gate_step(course, optimizers, gated, budget, journal, epoch)
        loss = train_epoch(course, gated, epoch, penalty=budget.penalty, step=step)
        compacted = compact(gated, threshold=settings.gates.compact_below)
        if compacted.gated is not gated:
            optimizers = optimizers.sliced(gated, compacted, course)
            gated, moves = compacted.gated, moves[compacted.kept_moves]
            budget.follow_(gated)
        measured = evaluate_on(course, gated)
        event = _gate_event(epoch, budget, gated, loss, steps, steps)
        journal.epoch_(replace(event, metric=measured.metric, metric_name=measured.metric_name))
    return Gated(gated, moves)


def _gate_step(
    course: Course, optimizers: _Optimizers, gated: GatedNetwork, budget: Penalty, journal: Journal, epoch: int
) -> Callable[[int, float], None]:
    epochs, steps = course.settings.gated_epochs, course.steps_per_epoch

    def step(position: int, loss: float) -> None:
        optimizers.step_(gated, (epoch + position / steps) / epochs, course)
        budget.step()
        journal.step_(lambda: _gate_event(epoch, budget, gated, loss, position + 1, steps))

    return step


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
    network = keep_zeros_(small.module().to(settings.device), masks)
    parameters = dict(network.named_parameters())
    optimizer = weight_optimizer(
        parameters, settings.optimizer, learning_rate=settings.rate, weight_decay=settings.weight_decay
    )
    epochs, steps = settings.epochs - first_epoch, course.steps_per_epoch
    last = best = evaluate_on(course, network)
    best_state, best_epoch = copy.deepcopy(network.state_dict()), 0
    for epoch in range(epochs):

        def step(position: int, loss: float, epoch: int = epoch) -> None:
            progress = (epoch + position / steps) / epochs
            set_learning_rate_(optimizer, settings.rate * cosine(progress))
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            journal.step_(lambda: event(epoch, loss, position + 1))

        def event(epoch: int, loss: float, position: int) -> ProgressEvent:
            rate = settings.rate * cosine((epoch + position / steps) / epochs)
            number = first_epoch + epoch + 1
            return ProgressEvent(
                "finetune", number, 0, step=position, steps=steps, loss=loss, density=density, learning_rate=rate
            )

        mean_loss = train_epoch(course, network, first_epoch + epoch, step=step)
        last = evaluate_on(course, network)
        if last.metric == best.metric or (last.metric > best.metric) == course.objective.higher_is_better:
            best, best_epoch, best_state = last, epoch + 1, copy.deepcopy(network.state_dict())
        closing = event(epoch, mean_loss, steps)
        journal.epoch_(replace(closing, metric=last.metric, metric_name=last.metric_name))
    last_state = network.state_dict()
    return Finished(
        small.with_state(_on_cpu(best_state)), best_epoch, best, small.with_state(_on_cpu(last_state)), last
    )


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in state.items()}
