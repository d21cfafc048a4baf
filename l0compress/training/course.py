"""What every phase of training shares: batches, teacher, loss, one epoch of steps, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.data import AnySplit, Batch, Data
from l0compress.errors import DataError
from l0compress.training.faults import diverged
from l0compress.training.lessons import Lessons
from l0compress.training.losses import Objective
from l0compress.training.outputs import outputs_of
from l0compress.training.randomness import own_generators, set_torch_states_, torch_states
from l0compress.training.settings import FinetuneSettings

_EPOCH_STRIDE = 1_000_003
MANY_FEATURES, MANY_FEATURES_DROPPED = 64, 0.1


@dataclass(frozen=True)
class Evaluation:
    """Loss and metric of a model on one part of the data. ``metric`` is what choices are made by."""

    loss: float
    metric: float
    metric_name: str
    num_samples: int


@dataclass
class Pass:
    """One pass over the training data: how far it has come, and where its own random sources stand.

    Attributes:
        epoch: the epoch, counted from 0 over both phases.
        augmenting: what augmentation draws from.
        step: batches done.
        total: the sum of their losses.
        sources: the states of the data source's own generators when the pass began.
        highest: a loss above this has exploded.
        restore: puts the global random state back once the batches that were done before are skipped.
    """

    epoch: int
    augmenting: torch.Generator
    step: int = 0
    total: float = 0.0
    sources: list[Tensor] = field(default_factory=list)
    highest: float = math.inf
    restore: Callable[[], None] | None = None

    @property
    def where(self) -> str:
        """The position for messages."""
        return f"step {self.step + 1} of epoch {self.epoch + 1}"


@dataclass(frozen=True, eq=False)
class Course:
    """The part of a run that no phase changes. ``teacher`` is the dense model in eval mode, or None.

    ``fewest`` samples are in every training batch; a stream's smaller ones are passed over. ``lessons`` knows what the
    teacher answers beforehand.
    """

    data: Data
    objective: Objective
    teacher: nn.Module | None
    settings: FinetuneSettings
    fewest: int = 1
    lessons: Lessons | None = None

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size_for(len(self.data.train))

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch, a last small one left out."""
        first = next(iter(self.data.train.batches(self.batch_size)))
        return max(1, len(self.data.train) // len(first))

    @property
    def gated_steps(self) -> int:
        """Steps in which gates are learned."""
        return self.settings.gated_epochs * self.steps_per_epoch

    def start_pass(self, epoch: int) -> Pass:
        """An epoch from its beginning."""
        return Pass(epoch, torch.Generator().manual_seed(self._seed(epoch)), sources=self._sources())

    def batches(self, epoch: int | Pass) -> Iterator[Batch]:
        """The training batches of an epoch, or what is left of one, shuffled and augmented by seed and epoch."""
        current = epoch if isinstance(epoch, Pass) else self.start_pass(epoch)
        drawn = self.data.train.batches(self.batch_size, seed=self._seed(current.epoch), drop_last=True)
        stream = (batch for batch in drawn if len(batch) >= self.fewest)
        if current.restore is None:
            current.sources = self._sources()
        else:
            for source, state in zip(own_generators(self.data.train), current.sources, strict=True):
                source.set_state(state)
            # Only the source knows its order, so what was done is drawn again and dropped.
            for _ in islice(stream, current.step):
                pass
            current.restore()
        for batch in stream:
            if self.data.augment is not None:
                batch = self.data.augment(batch, current.augmenting)
            yield batch.to(self.settings.device)

    def answers(self, current: Pass) -> Iterator[Any]:
        """What the teacher answers to each of :meth:`batches`; None each time where it has to be asked."""
        if self.teacher is None or self.lessons is None or self.lessons.answers is None:
            return repeat(None)
        known = self.lessons.batches(self.batch_size, seed=self._seed(current.epoch))
        return islice(known, current.step, None)

    def _sources(self) -> list[Tensor]:
        return [source.get_state() for source in own_generators(self.data.train)]

    def _seed(self, epoch: int) -> int:
        return self.settings.seed * _EPOCH_STRIDE + epoch

    def autocast(self) -> AbstractContextManager[Any]:
        device_type = torch.device(self.settings.device).type
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.settings.bf16)

    def loss(self, network: nn.Module, batch: Batch, answers: Any = None) -> Tensor:
        """The training loss of one batch; ``answers`` are the teacher's, where they are known."""
        with self.autocast():
            teacher_outputs = answers
            if answers is None and self.teacher is not None:
                teacher_outputs = outputs_of(self.teacher, batch)
            noisy = self.noisy(batch)
            outputs = noisy.run(network)
        return self.objective.loss(outputs, batch.targets, teacher_outputs)

    def noisy(self, batch: Batch) -> Batch:
        """What the network is trained on."""
        return drop_inputs(batch, self.settings.input_dropout)


def drop_inputs(batch: Batch, probability: float | None) -> Batch:
    """Dropout on flat floating inputs ``(n, features)``; other inputs are left alone.

    Without a probability, inputs of :data:`MANY_FEATURES` or more lose a tenth: one of many pixels tells what others
    tell, too. Of a few columns each is needed. Draws from the global generator.
    """
    if probability == 0:
        return batch

    def drop(tensor: Tensor) -> Tensor:
        if tensor.dim() != 2 or not tensor.is_floating_point():
            return tensor
        chosen = MANY_FEATURES_DROPPED if tensor.shape[1] >= MANY_FEATURES else 0.0
        share = chosen if probability is None else probability
        return dropout(tensor, share) if share else tensor

    return batch.each(drop)


def dropout(tensor: Tensor, probability: float) -> Tensor:
    """``tensor`` with elements zeroed at random and the rest scaled up; the probability is rounded to 1/256.

    >>> dropout(torch.ones(2), 0.001)
    tensor([1., 1.])
    """
    # One random byte an element: several times faster on a CPU than torch's own dropout, which would take half of a
    # small network's step.
    threshold = round(probability * 256)
    if tensor.device.type != "cpu":
        kept = torch.rand(tensor.shape, device=tensor.device) >= threshold / 256
        return tensor * kept * (256 / (256 - threshold))
    words = torch.empty((tensor.numel() + 7) // 8, dtype=torch.int64)
    random_bytes = words.random_(torch.iinfo(torch.int64).min, None).view(torch.uint8)[: tensor.numel()]
    return tensor * (random_bytes.view(tensor.shape) >= threshold) * (256 / (256 - threshold))


def train_epoch(
    course: Course,
    network: nn.Module,
    current: Pass,
    *,
    penalty: Callable[[], Tensor] | None = None,
    step: Callable[[int, float], None],
    done: Callable[[], None],
) -> float:
    """One pass over the training data, or what is left of it; returns its mean loss without the penalty.

    ``step`` is called with the batch's position and loss once gradients are there; it updates what is trained and
    clears gradients. ``done`` is called when ``current`` says so too.

    Raises:
        DivergedError: the loss is not finite or has exploded; the message names the step and the layer.
    """
    network.train()
    # Answers may be endless, and what comes first ends the loop.
    for batch, answers in zip(course.batches(current), course.answers(current), strict=False):
        states = torch_states(course.settings.device)
        loss = course.loss(network, batch, answers)
        value = float(loss.detach())
        if not value <= current.highest or not math.isfinite(value):
            # What went wrong may go right with other gates and other dropped units.
            set_torch_states_(states, course.settings.device)
            raise diverged(value, current.where, network, course.noisy(batch))
        (loss if penalty is None else loss + penalty()).backward()
        step(current.step, value)
        current.total, current.step = current.total + value, current.step + 1
        done()
    if current.step == 0:
        raise DataError("The training data yields no batch. Nothing was changed.")
    return current.total / current.step


def evaluate(
    network: nn.Module,
    split: AnySplit,
    objective: Objective,
    *,
    teacher: nn.Module | None = None,
    batch_size: int = 256,
    device: str = "cpu",
) -> Evaluation:
    """Loss and metric of ``network`` in eval mode on a part of the data; the mode is restored afterwards.

    Without labels, outputs are compared with the teacher's. The result is the same in every command and phase: nothing
    that only training uses is in it.
    """
    was_training = network.training
    network.eval()
    loss, hits, counted, num_samples = 0.0, 0, 0, 0
    with torch.no_grad():
        for batch in split.batches(batch_size):
            batch = batch.to(device)
            outputs = batch.run(network)
            teacher_outputs = outputs_of(teacher, batch) if teacher is not None and batch.targets is None else None
            loss += float(objective.score(outputs, batch.targets, teacher_outputs)) * len(batch)
            num_samples += len(batch)
            if objective.reading.counts_hits:
                right, seen = objective.hits(outputs, batch.targets, teacher_outputs)
                hits, counted = hits + right, counted + seen
    network.train(was_training)
    mean_loss = loss / num_samples
    metric = hits / max(counted, 1) if objective.reading.counts_hits else mean_loss
    return Evaluation(mean_loss, metric, objective.metric_name, num_samples)
