"""Task losses, distillation losses and the metric beside them, as pure functions of outputs and targets.

Model outputs may be a tensor, a tuple or list, or a mapping; :func:`logits_of` says which tensor is meant by labels and
by the metric. The others are taught by the dense model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from l0compress.calls import named_leaves
from l0compress.errors import DataError, InputError

IGNORED = -100
# The least probability whose logarithm is taken.
TINY = 1e-12
LOSSES = ("auto", "cross-entropy", "mse")

TaskLoss = Callable[[Any, Tensor], Tensor]


def logits_of(outputs: Any) -> Tensor:
    """The tensor that a loss is computed on: ``outputs`` itself, its entry ``"logits"``, or its first tensor.

    >>> import torch
    >>> logits_of({"hidden": torch.zeros(1), "logits": torch.ones(2)})
    tensor([1., 1.])
    >>> logits_of((torch.ones(1), torch.zeros(1)))
    tensor([1.])

    Raises:
        DataError: there is no tensor in ``outputs``.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"]
    items = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, Sequence) else ()
    for item in items:
        if isinstance(item, Tensor):
            return item
    raise DataError(
        f"The model returns {type(outputs).__name__} with no tensor in it, so no loss can be computed. Nothing was "
        "changed. Return a tensor, a tuple that starts with one, or a mapping with the key 'logits'."
    )


def others_of(outputs: Any) -> tuple[Tensor, ...]:
    """The floating-point tensors of ``outputs`` beside the one that :func:`logits_of` returns, however they are nested.

    >>> import torch
    >>> others_of((torch.ones(1), [torch.zeros(1), torch.tensor([3])]))
    (tensor([0.]),)
    """
    main = logits_of(outputs)
    leaves = [leaf for leaf in named_leaves(outputs).values() if isinstance(leaf, Tensor) and leaf is not main]
    return tuple(leaf for leaf in leaves if leaf.is_floating_point() and leaf.numel())


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats; targets of -100 do not count.

    Logits ``(n, C)`` with targets ``(n,)``, ``(n, seq, C)`` with ``(n, seq)``, or ``(n, C, ...)`` with ``(n, ...)``.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100]))
    tensor(1.3863)
    """
    logits = class_last(logits_of(outputs), targets)
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED)


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
            f"The model predicts values of shape {tuple(predictions.shape)} and the targets have shape "
            f"{tuple(targets.shape)}. Nothing was changed. Give one target for each predicted value."
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
    return temperature**2 * divergence.mean()


def class_last(logits: Tensor, targets: Tensor) -> Tensor:
    """``logits`` with its class dimension last, the others as in ``targets``.

    Raises:
        DataError: neither ``(..., C)`` nor ``(n, C, ...)`` fits the targets.
    """
    if logits.shape[:-1] == targets.shape:
        return logits
    if logits.dim() > 2 and (logits.shape[0], *logits.shape[2:]) == tuple(targets.shape):
        return logits.movedim(1, -1)
    raise DataError(
        f"The model's output of shape {tuple(logits.shape)} does not fit class labels of shape "
        f"{tuple(targets.shape)}. Nothing was changed. Give one integer label for each row of class scores, or use "
        "the loss 'mse' for regression."
    )


@dataclass(frozen=True)
class Objective:
    """What is minimised and what is measured.

    ``kind`` is "classes" or "values" and decides how outputs are compared with the teacher's. ``scale`` divides
    squared errors: the variance of the dense model's output, so that a loss means the same whatever its unit. So do
    ``others``, one a further output, which are compared as values. ``guessed``: nobody has said that the outputs are
    classes, so they are compared as values as well, and what is no class is not lost. ``probabilities``: the model ends
    in a softmax, so that its logarithms are the logits.
    """

    kind: str
    task: TaskLoss
    custom: bool = False
    scale: float = 1.0
    temperature: float = 2.0
    task_share: float = 0.5
    others: tuple[float, ...] = ()
    guessed: bool = False
    probabilities: bool = False

    def loss(self, outputs: Any, targets: Tensor | None, teacher_outputs: Any) -> Tensor:
        """Scalar to minimise: ``task_share`` task loss, the rest distillation; one alone where the other is absent."""
        if teacher_outputs is None and targets is None:
            raise DataError(
                "There are neither labels nor a teacher, so there is nothing to learn from. Nothing was changed. "
                "Give data with labels, or leave distillation on."
            )
        if targets is None:
            return self.distillation(outputs, teacher_outputs)
        task = self.task(outputs, targets) if self.custom else self.task(self._scores(outputs), targets) / self.scale
        if teacher_outputs is None or self.task_share >= 1:
            return task
        distilled = self.distillation(outputs, teacher_outputs, targets)
        return self.task_share * task + (1 - self.task_share) * distilled

    def distillation(self, outputs: Any, teacher_outputs: Any, targets: Tensor | None = None) -> Tensor:
        """Distance from the teacher: KL divergence of classes, or scaled squared error of values, and of all others."""
        distance = self._main_distance(outputs, teacher_outputs, targets)
        if self.others:
            pairs = zip(others_of(outputs), others_of(teacher_outputs), self.others, strict=True)
            for student, teacher, scale in pairs:
                distance = distance + F.mse_loss(student.float(), teacher.float()) / scale
        return distance

    def _main_distance(self, outputs: Any, teacher_outputs: Any, targets: Tensor | None) -> Tensor:
        if self.kind == "values":
            return mse(outputs, logits_of(teacher_outputs)) / self.scale
        labels = targets if targets is not None and not targets.is_floating_point() else None
        student, teacher = self._scores(outputs), self._scores(teacher_outputs)
        divergence = kl_divergence(student, teacher, temperature=self.temperature, targets=labels)
        if not self.guessed:
            return divergence
        return divergence + mse(outputs, logits_of(teacher_outputs)) / self.scale

    def _scores(self, outputs: Any) -> Any:
        return logits_of(outputs).float().clamp_min(TINY).log() if self.probabilities else outputs

    @property
    def metric_name(self) -> str:
        """ "accuracy" (a share, higher is better) or "loss" (lower is better)."""
        return "accuracy" if self.kind == "classes" and not self.custom else "loss"

    @property
    def higher_is_better(self) -> bool:
        return self.metric_name == "accuracy"

    def hits(self, outputs: Any, targets: Tensor | None, teacher_outputs: Any) -> tuple[int, int]:
        """How many predicted classes are right, and of how many; the teacher's classes stand in for missing labels."""
        logits = logits_of(outputs)
        if targets is None:
            targets = logits_of(teacher_outputs).argmax(-1)
        counted = targets != IGNORED
        right = (class_last(logits, targets).argmax(-1) == targets) & counted
        return int(right.sum()), int(counted.sum())


def objective_for(
    loss: str | TaskLoss, targets: Tensor | None, outputs: Any, *, temperature: float = 2.0, task_share: float = 0.5
) -> Objective:
    """Choose what is minimised from the loss asked for, some targets and the dense model's outputs on the same batch.

    ``"auto"`` is cross-entropy for integer targets and mean squared error for floating ones. Without targets it
    compares class distributions where the outputs have an entry ``"logits"``; both distributions and values where they
    are a matrix of at least two columns, which may or may not be classes; else values.

    >>> import torch
    >>> objective_for("auto", torch.tensor([0, 1]), torch.zeros(2, 3)).kind
    'classes'
    >>> objective_for("auto", torch.tensor([0.5, 1.5]), torch.zeros(2, 1)).kind
    'values'

    Raises:
        InputError: an unknown name of a loss.
    """
    others = tuple(_variance(output) for output in others_of(outputs))
    course: dict[str, Any] = {
        "temperature": temperature,
        "task_share": task_share,
        "others": others,
        "probabilities": _are_probabilities(logits_of(outputs)),
    }
    if callable(loss):
        kind = "values" if targets is not None and targets.is_floating_point() else "classes"
        return Objective(kind, loss, custom=True, scale=_variance(outputs) if kind == "values" else 1.0, **course)
    if loss not in LOSSES:
        raise InputError(
            f"Unknown loss {loss!r}: expected one of {', '.join(LOSSES)}, or a function of (outputs, targets). "
            "Nothing was changed."
        )
    if loss == "mse" or (loss == "auto" and not _are_classes(targets, outputs)):
        return Objective("values", mse, scale=_variance(outputs), **course)
    if loss == "auto" and targets is None and not isinstance(outputs, Mapping):
        return Objective("classes", cross_entropy, scale=_variance(outputs), guessed=True, **course)
    return Objective("classes", cross_entropy, **course)


def _are_classes(targets: Tensor | None, outputs: Any) -> bool:
    if targets is not None:
        return not targets.is_floating_point()
    if isinstance(outputs, Mapping):
        return "logits" in outputs
    logits = logits_of(outputs)
    return logits.dim() == 2 and logits.shape[1] >= 2


def _are_probabilities(scores: Tensor) -> bool:
    """Whether every row of a matrix is a distribution, as behind a softmax.

    >>> import torch
    >>> _are_probabilities(torch.tensor([[0.5, 0.5], [1.0, 0.0]])), _are_probabilities(torch.tensor([[2.0, -1.0]]))
    (True, False)
    """
    if scores.dim() != 2 or scores.shape[1] < 2 or not scores.is_floating_point() or bool((scores < 0).any()):
        return False
    return bool(((scores.float().sum(1) - 1).abs() < 1e-3).all())


def _variance(outputs: Any) -> float:
    values = logits_of(outputs).detach().float()
    variance = float(values.var()) if values.numel() > 1 else 0.0
    return variance if variance > 0 else 1.0
