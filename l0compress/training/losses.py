"""Task losses, distillation losses and the metric beside them, as pure functions of outputs and targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from l0compress.errors import DataError, InputError
from l0compress.training.outputs import (
    IGNORED,
    TINY,
    checked_labels,
    class_last,
    logits_of,
    others_of,
    two_classes,
)
from l0compress.training.reading import BINARY, VALUES, Reading
from l0compress.training.settings import LOSSES
from l0compress.training.survey import Survey

# Softer distributions teach better; scores are of the model's own.
SCORE_TEMPERATURE = 1.0

TaskLoss = Callable[[Any, Tensor], Tensor]


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats; targets of -100 do not count, and where none count it is 0.

    Logits ``(n, C)`` with targets ``(n,)``, ``(n, seq, C)`` with ``(n, seq)``, or ``(n, C, ...)`` with ``(n, ...)``.
    Targets are integers of any type.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100]))
    tensor(1.3863)

    Raises:
        DataError: the shapes do not fit, or a target is no class.
    """
    logits = class_last(logits_of(outputs), targets).flatten(0, -2).float()
    labels = checked_labels(targets, logits.shape[-1]).flatten()
    if bool((labels == IGNORED).all()):
        return logits.sum() * 0
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def mse(outputs: Any, targets: Tensor) -> Tensor:
    """Mean squared error; predictions ``(n, 1)`` fit targets ``(n,)``.

    >>> import torch
    >>> mse(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
    tensor(2.)

    Raises:
        DataError: predictions and targets have different numbers of elements.
    """
    predictions = logits_of(outputs)
    if predictions.numel() != targets.numel():
        raise DataError(
            f"The model predicts values of shape {tuple(predictions.shape)}, but the targets have shape "
            f"{tuple(targets.shape)}.",
            fix="Give one target for each predicted value.",
        )
    return F.mse_loss(predictions.float().flatten(), targets.float().flatten())


def kl_divergence(outputs: Any, teacher_outputs: Any, *, temperature: float, targets: Tensor | None = None) -> Tensor:
    """``T^2 * KL(teacher || student)`` of the class distributions at temperature T, mean over positions.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Where ``targets`` are given, positions of -100 do not count and the class dimension is found from their shape;
    otherwise it is the last one.

    >>> import torch
    >>> kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), temperature=2.0)
    tensor(0.)
    """
    student, teacher = logits_of(outputs), logits_of(teacher_outputs)
    if targets is not None:
        student, teacher = class_last(student, targets), class_last(teacher, targets)
    log_student = F.log_softmax(student.flatten(0, -2).float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.flatten(0, -2).float() / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    if targets is not None:
        divergence = divergence[targets.flatten() != IGNORED]
        if not len(divergence):
            return student.sum() * 0
    return temperature**2 * divergence.mean()


@dataclass(frozen=True)
class Share:
    """What a part of a batch makes of the batch's loss.

    Attributes:
        labels: its share of the labels that count, where the loss is their mean; otherwise of the samples.
        samples: its share of the samples.
    """

    labels: float = 1.0
    samples: float = 1.0


WHOLE = Share()


@dataclass(frozen=True)
class Objective:
    """What is minimised and what is measured.

    Attributes:
        reading: how outputs and targets are read, and what squared errors are divided by.
        task: the loss of outputs and targets.
        temperature: of the distributions that are compared with the teacher's.
        task_share: the task loss's part of the whole.
    """

    reading: Reading
    task: TaskLoss
    temperature: float = 2.0
    task_share: float = 0.5

    def loss(self, outputs: Any, targets: Tensor | None, teacher_outputs: Any, share: Share = WHOLE) -> Tensor:
        """Scalar to minimise: ``task_share`` task loss, the rest distillation; one alone where the other is absent.

        Of a part of a batch it is that part's share of the batch's loss; those of all parts add up to it.
        """
        if teacher_outputs is None and targets is None:
            raise DataError(
                "There are neither labels nor a teacher, so there is nothing to learn from.",
                fix="Give data with labels, or leave distillation on.",
            )
        if targets is None:
            return self.distillation(outputs, teacher_outputs, share=share)
        task = self._task_loss(outputs, targets) * share.labels
        if teacher_outputs is None or self.task_share >= 1:
            return task
        distilled = self.distillation(outputs, teacher_outputs, targets, share)
        return self.task_share * task + (1 - self.task_share) * distilled

    def share_of(self, targets: Tensor | None, rows: slice, count: int) -> Share:
        """What ``rows`` of a batch of ``count`` samples with these ``targets`` make of its loss."""
        samples = len(range(*rows.indices(count))) / count
        labels = self.labels_in(targets)
        if labels is None:
            return Share(samples, samples)
        counted = labels != IGNORED
        whole = int(counted.sum())
        return Share(int(counted[rows].sum()) / whole if whole else samples, samples)

    def score(self, outputs: Any, targets: Tensor | None, teacher_outputs: Any, share: Share = WHOLE) -> Tensor:
        """The loss that a model is judged by: the task's, or without targets the distance from the teacher.

        It does not depend on the settings of the training.
        """
        judge = replace(self, temperature=SCORE_TEMPERATURE)
        return judge.loss(outputs, targets, teacher_outputs if targets is None else None, share)

    def distillation(
        self, outputs: Any, teacher_outputs: Any, targets: Tensor | None = None, share: Share = WHOLE
    ) -> Tensor:
        """Distance from the teacher: KL divergence of classes, or scaled squared error of values, and of all others."""
        distance = self._main_distance(outputs, teacher_outputs, targets) * share.labels
        if self.reading.others:
            pairs = zip(others_of(outputs), others_of(teacher_outputs), self.reading.others, strict=True)
            for student, teacher, scale in pairs:
                distance = distance + F.mse_loss(student.float(), teacher.float()) / scale * share.samples
        return distance

    def _task_loss(self, outputs: Any, targets: Tensor) -> Tensor:
        if self.reading.custom:
            return self.task(outputs, targets)
        return self.task(self.scores(outputs, targets), targets) / self.reading.scale

    def _main_distance(self, outputs: Any, teacher_outputs: Any, targets: Tensor | None) -> Tensor:
        if self.kind == VALUES:
            return mse(outputs, logits_of(teacher_outputs)) / self.reading.scale
        labels = self.labels_in(targets)
        student, teacher = self.scores(outputs, labels), self.scores(teacher_outputs, labels)
        divergence = kl_divergence(student, teacher, temperature=self.temperature, targets=labels)
        if not self.reading.guessed:
            return divergence
        return divergence + mse(outputs, logits_of(teacher_outputs)) / self.reading.scale

    def labels_in(self, targets: Tensor | None) -> Tensor | None:
        """The targets where they are labels: as such alone they leave samples out, and say where the classes are."""
        if targets is None or (self.kind != BINARY and targets.is_floating_point()):
            return None
        return targets

    def scores(self, outputs: Any, targets: Tensor | None) -> Any:
        """What has a softmax: as the model returns it, its logarithms, or a score for each of two classes."""
        if self.kind == BINARY:
            scores = logits_of(outputs)
            shape = scores.shape if targets is None else targets.shape
            return two_classes(scores, shape, probabilities=self.probabilities)
        return logits_of(outputs).float().clamp_min(TINY).log() if self.probabilities else outputs

    @property
    def kind(self) -> str:
        """How outputs are compared: "classes", "binary" or "values"."""
        return self.reading.kind

    @property
    def probabilities(self) -> bool:
        """Whether outputs are probabilities, whose logarithms are the logits."""
        return self.reading.probabilities

    @property
    def metric_name(self) -> str:
        """ "accuracy" (a share, higher is better) or "loss" (lower is better)."""
        return "accuracy" if self.reading.counts_hits else "loss"

    @property
    def higher_is_better(self) -> bool:
        return self.reading.counts_hits

    def hits(self, outputs: Any, targets: Tensor | None, teacher_outputs: Any) -> tuple[int, int]:
        """How many predicted classes are right, and of how many; the teacher's classes stand in for missing labels."""
        scores = logits_of(self.scores(outputs, targets))
        if targets is None:
            targets = logits_of(self.scores(teacher_outputs, None)).argmax(-1)
        labels = targets.long()
        counted = labels != IGNORED
        right = (class_last(scores, labels).argmax(-1) == labels) & counted
        return int(right.sum()), int(counted.sum())


def objective_for(
    loss: str | TaskLoss, targets: Tensor | None, outputs: Any, *, temperature: float = 2.0, task_share: float = 0.5
) -> Objective:
    """Choose what is minimised from the loss asked for, targets, and the dense model's outputs on the same samples.

    ``"auto"`` is cross-entropy for integer targets, binary cross-entropy where the model returns one number for each
    of them, and mean squared error for floating ones. Without targets it compares class distributions where the outputs
    have an entry ``"logits"``; both distributions and values where they are a matrix of at least two columns, which may
    or may not be classes; else values.

    >>> import torch
    >>> objective_for("auto", torch.tensor([0, 1]), torch.zeros(2, 3)).kind
    'classes'
    >>> objective_for("auto", torch.tensor([0, 1]), torch.tensor([[-1.0], [1.0]])).kind
    'binary'
    >>> objective_for("auto", torch.tensor([0.5, 1.5]), torch.zeros(2, 1)).kind
    'values'

    Raises:
        InputError: an unknown name of a loss, or it cannot be told what the model returns.
    """
    check_loss(loss)
    survey = Survey(loss, targets, outputs)
    survey.add_(targets, outputs)
    return objective_of(survey.reading(), loss, temperature=temperature, task_share=task_share)


def objective_of(
    reading: Reading, loss: str | TaskLoss, *, temperature: float = 2.0, task_share: float = 0.5
) -> Objective:
    """The objective of a reading that was taken before."""
    named = mse if reading.kind == VALUES else cross_entropy
    return Objective(reading, loss if callable(loss) else named, temperature, task_share)


def check_loss(loss: str | TaskLoss) -> None:
    """Raises:
    InputError: an unknown name of a loss.
    """
    if not callable(loss) and loss not in LOSSES:
        raise InputError(
            f"Unknown loss {loss!r}: expected one of {', '.join(LOSSES)}, or a function of (outputs, targets).", fix=""
        )
