"""The state of a run while it trains, and the one loop that trains it, whatever phase it is in."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from l0compress.data import Batch
from l0compress.errors import DataError
from l0compress.graph.nodes.checksum import weights_checksum
from l0compress.training.activations.penalty import charged
from l0compress.training.epoch import Epoch
from l0compress.training.evaluation import Evaluation
from l0compress.training.events import ProgressEvent, warning
from l0compress.training.faults import EXPLODED, check_parameters, diverged
from l0compress.training.held import is_divided, stored
from l0compress.training.problem import Problem
from l0compress.training.randomness import (
    random_states,
    set_loader_states_,
    set_random_states_,
    set_torch_states_,
    torch_states,
)
from l0compress.training.reporting import Reporter
from l0compress.training.stage import Phase, Stage
from l0compress.training.state_dicts import StateDict, prefixed, under


@dataclass(eq=False)
class TrainingState:
    """All that a run changes. With the same problem, a state dict is all that it takes to go on, bit for bit.

    Attributes:
        problem: what does not change.
        reporter: gets every step and epoch.
        dense: validation result of the dense model.
        epoch: how far training has come.
        phase: what is trained, or a stage without training; None where that is not yet known.
        history: the events that closed an epoch, or a phase within one.
        decided: decisions so far as named tensors, which every state dict has.
        resumed: the state dict that the run goes on from, as soon as it is in that phase.
        started: when the run began, on the monotonic clock.
        paced_from: when the phase began or went on, and how many epochs were done then: what time is left is worked out
            from there, since scoring before the first step and an earlier phase have a pace of their own.
    """

    problem: Problem
    reporter: Reporter
    dense: Evaluation
    epoch: Epoch
    phase: Stage | None = None
    history: list[ProgressEvent] = field(default_factory=list)
    decided: dict[str, Tensor] = field(default_factory=dict)
    resumed: StateDict | None = None
    started: float = field(default_factory=time.monotonic)
    paced_from: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), 0.0))

    @classmethod
    def begin(cls, problem: Problem, reporter: Reporter, *, dense: Evaluation | None = None) -> TrainingState:
        """Report what is odd about the data, and measure the dense model; or take over what a stopped run found.

        Where ``dense`` says what was measured, the run follows on another that reported both.

        Raises:
            DataError: the training part has samples of one class only.
        """
        epochs, resumed = problem.settings.epochs, reporter.checkpoints.start
        if resumed is None and dense is not None:
            return cls(problem, reporter, dense, problem.epoch(0))
        for message in problem.warnings():
            reporter.on_event(warning(message, epochs=epochs))
        if resumed is None:
            dense = problem.evaluate(problem.held(problem.graph.module().to(problem.device)).network)
            event = ProgressEvent("dense", 0, epochs, loss=dense.loss, metric=dense.metric)
            reporter.on_event(replace(event, metric_name=dense.metric_name))
            return cls(problem, reporter, dense, problem.epoch(0))
        event = ProgressEvent("resumed", resumed["epoch"] + 1, epochs, step=resumed["step"], epoch_done=False)
        reporter.on_event(replace(event, steps=resumed["steps"]))
        dense = Evaluation.from_json(resumed["dense"])
        return cls(problem, reporter, dense, problem.epoch(resumed["epoch"]), resumed=resumed)

    def resumed_in(self, phase: str) -> StateDict | None:
        """The state dict that the run goes on from, if it was saved in this phase."""
        resumed = self.resumed
        return resumed if resumed is not None and resumed["stage"] == phase else None

    def enter_(self, phase: Stage) -> None:
        """Begin a stage, or go on with it where the stopped run was in it."""
        self.phase, resumed = phase, self.resumed_in(phase.name)
        if resumed is not None:
            self.load_state_dict(resumed)
        else:
            phase.begin_()
            number, step = divmod(phase.steps.start, self.problem.steps_per_epoch)
            self.epoch = self.problem.epoch(number)
            self.epoch.step = step
        self.paced_from = time.monotonic(), self.epoch.number + self.epoch.step / self.problem.steps_per_epoch

    def state_dict(self) -> StateDict:
        """The state of the run, weights, optimizers, position and random states.

        Of what is divided over processes, all have to ask for it, and the first alone gets the values.

        Raises:
            DivergedError: a weight is not finite, so that nobody should go on from here.
        """
        epoch, phase = self.epoch, self.phase
        found: StateDict = {
            "epoch": epoch.number,
            "epochs": self.problem.settings.epochs,
            "step": epoch.step,
            "steps": self.problem.steps_per_epoch,
            "total": epoch.total,
            "seconds": time.monotonic() - self.started,
            "dense": self.dense.to_json(),
            "history": [event.row() for event in self.history],
            "reading": self.problem.objective.reading.to_json(),
            "augmenting": epoch.augmentation.get_state(),
            **{f"sources.{position}": state for position, state in enumerate(epoch.loader_states)},
            **prefixed("random", random_states(self.problem.device)),
            **self.decided,
        }
        if phase is None:
            return found
        check_parameters(phase.network, f"step {max(epoch.step, 1)} of epoch {epoch.number + 1}")
        own = phase.state_dict().items()
        keep = self.problem.processes.is_first
        tensors = {name: stored(value, keep=keep) if isinstance(value, Tensor) else value for name, value in own}
        return {**found, "stage": phase.name, **tensors}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Go on from what :meth:`state_dict` returned in the same phase; what was decided by then is not read."""
        if self.phase is not None:
            self.phase.load_state_dict(state_dict)
        self.dense = Evaluation.from_json(state_dict["dense"])
        self.history = [ProgressEvent(**row) for row in state_dict["history"]]
        self.started = time.monotonic() - state_dict["seconds"]
        random = under("random", state_dict)

        def resume() -> None:
            set_random_states_(random, self.problem.device)

        self.epoch = epoch = self.problem.epoch(state_dict["epoch"])
        epoch.step, epoch.total = state_dict["step"], float(state_dict["total"])
        epoch.augmentation.set_state(state_dict["augmenting"])
        epoch.loader_states = [state_dict[f"sources.{position}"] for position in range(len(epoch.loader_states))]
        set_loader_states_(self.problem.data.train, epoch.loader_states)
        epoch.resume = resume if epoch.step else None
        resume()

    def step_done_(self, phase: Phase, loss: float) -> None:
        """Count a step, and report it."""
        self.epoch.total, self.epoch.step = self.epoch.total + loss, self.epoch.step + 1

        def event() -> ProgressEvent:
            return replace(self._event(phase, loss), epoch_done=False)

        self.reporter.step_(self, event)

    def epoch_done_(self, phase: Phase, loss: float, measured: Evaluation) -> None:
        """Go on to the next epoch, and report the one that is done."""
        self.epoch.step = phase.steps_in(self.epoch.number).stop
        event = replace(self._event(phase, loss), metric=measured.metric, metric_name=measured.metric_name)
        self.history.append(event)
        self.epoch = self.problem.epoch(self.epoch.number + 1)
        self._check_processes(phase)
        self.reporter.epoch_(self, event, ends_phase=self.epoch.number == phase.epochs.stop)

    def progress(self, phase: Phase) -> float:
        """The share of a phase that is done."""
        done = self.epoch.number * self.problem.steps_per_epoch + self.epoch.step - phase.steps.start
        return done / len(phase.steps)

    def _check_processes(self, phase: Phase) -> None:
        """Raises:
        ProcessesError: what is trained, the multipliers or the random state are not those of the first process.
        """
        processes = self.problem.processes
        if processes.is_alone:
            return
        # Of what is divided, each has another part.
        state = {name: value for name, value in phase.state_dict().items() if not is_divided(value)}
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in state.items() if name not in tensors}
        checksum = weights_checksum({**tensors, **torch_states("cpu")})
        where = f"the end of epoch {self.epoch.number} of {self.problem.settings.epochs}"
        processes.check_same(f"{checksum} {plain}", f"What was trained by {where}")

    def _event(self, phase: Phase, loss: float) -> ProgressEvent:
        epochs, steps, step = self.problem.settings.epochs, self.problem.steps_per_epoch, self.epoch.step
        now, done = time.monotonic(), self.epoch.number + step / steps
        since, before = self.paced_from
        return ProgressEvent(
            phase.name,
            self.epoch.number + 1,
            epochs,
            step=step,
            steps=steps,
            loss=loss,
            seconds=now - self.started,
            # A run that goes on after the last step of an epoch closes it without having a pace yet.
            seconds_left=None if done == before else (now - since) / (done - before) * (epochs - done),
            **phase.report(self.progress(phase)),
        )


def train_(state: TrainingState, phase: Phase) -> None:
    """Train what ``phase`` trains, from where the state is to the end of the phase.

    Raises:
        DivergedError: the loss is not finite or has exploded; the message names the step and the layer.
    """
    state.enter_(phase)
    while state.epoch.number < phase.epochs.stop:
        loss = _train_epoch_(state, phase)
        state.epoch_done_(phase, loss, phase.end_epoch_(state.epoch.number))


def _train_epoch_(state: TrainingState, phase: Phase) -> float:
    """One pass over the training data, or what is left of it; returns its mean loss, without what regularises it."""
    problem, epoch = phase.epoch_problem(), state.epoch
    highest = EXPLODED * max(1.0, abs(state.dense.loss))
    phase.network.train()
    steps = phase.steps_in(epoch.number)
    ends_early = steps.stop < problem.steps_per_epoch
    batches = problem.batches(epoch, stop=steps.stop if ends_early else None)
    # The teacher's outputs may be endless, and what comes first ends the loop.
    for batch, teacher_outputs in zip(batches, problem.teacher_outputs(epoch), strict=False):
        random = torch_states(problem.device)
        value = _differentiate_(phase, problem, batch, teacher_outputs)
        if not value <= highest or not math.isfinite(value):
            # What went wrong may go right with other gates and other dropped units.
            set_torch_states_(random, problem.device)
            raise diverged(value, epoch.where, phase.whole_network(), problem.with_dropout(batch))
        phase.step_(state.progress(phase))
        state.step_done_(phase, value)
    if epoch.step == steps.start:
        raise DataError("The training data yields no batch.", fix="Check the sampler of its loader, and drop_last.")
    return epoch.total / (epoch.step - steps.start)


def _differentiate_(phase: Phase, problem: Problem, batch: Batch, teacher_outputs: Any) -> float:
    """Leave the gradients of a batch's regularised loss with the network's parameters; returns the loss without."""
    processes, network = problem.processes, phase.network
    value = 0.0
    for number, (loss, share) in enumerate(problem.losses(network, batch, teacher_outputs)):
        value += float(loss.detach())
        loss = charged(loss, network, problem.settings.activation_l1 * share)
        # The mean over processes is taken of all of it, and what regularises is the same in each of them.
        scaled = loss if processes.is_alone else loss * processes.size
        phase.scaler.scale(scaled if number else phase.regularized(scaled)).backward()
    if not processes.is_alone:
        (value,) = processes.sums([value])
        # FSDP averages the gradients of what is divided.
        gradients = (parameter.grad for parameter in network.parameters() if not is_divided(parameter))
        processes.average_(gradient for gradient in gradients if gradient is not None)
    return value
