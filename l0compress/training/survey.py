"""How outputs and targets are to be read, and on what scale: decided once, from the training part.

requires: the training part, and the dense model's outputs on it.
ensures:  a :class:`Reading` that depends neither on the order of the samples nor on the size of a batch, so that a
          score means the same in training, in evaluation and in every command that reads the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from l0compress.data import AnySplit, Batch, StreamSplit
from l0compress.errors import DataError, InputError
from l0compress.training.outputs import logits_of, one_score_each, others_of
from l0compress.training.randomness import undisturbed
from l0compress.training.reading import BINARY, CLASSES, VALUES, Reading, kind_of

# The dense model runs on so many samples at most; more would tell no more and cost as much as an epoch.
MOST_SAMPLES = 65_536
# A deviation below this share of the mean is rounding.
_CONSTANT = 1e-6


@dataclass
class Moments:
    """Mean and variance of all the elements that were added, in float64, in whatever pieces they came.

    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, equation 2.1.

    >>> import torch
    >>> whole, pieces = Moments(), Moments()
    >>> whole.add_(torch.tensor([1.0, 2.0, 6.0])), [pieces.add_(torch.tensor([x])) for x in (6.0, 1.0, 2.0)]
    (None, [None, None, None])
    >>> whole.mean, round(whole.variance, 6), round(pieces.variance, 6)
    (3.0, 4.666667, 4.666667)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add_(self, values: Tensor) -> None:
        """Count the finite elements in."""
        flat = values.detach().cpu().double().flatten()
        flat = flat[flat.isfinite()]
        if not len(flat):
            return
        mean, before, self.count = float(flat.mean()), self.count, self.count + len(flat)
        off = mean - self.mean
        self.squares += float((flat - mean).square().sum()) + off * off * before * len(flat) / self.count
        self.mean += off * len(flat) / self.count

    @property
    def variance(self) -> float:
        """The mean squared deviation from the mean."""
        return self.squares / self.count if self.count else 0.0

    @property
    def scale(self) -> float:
        """What squared errors are divided by: the variance, or 1 where nothing varies."""
        return self.variance if self.variance > (_CONSTANT * self.mean) ** 2 else 1.0


@dataclass
class _Evidence:
    """Whether one number a sample is a probability, a logit or a value, where the labels are 0 and 1.

    A logit explains labels better than their share does, by its cross-entropy; a value does so by its squared error.
    """

    targets: Moments = field(default_factory=Moments)
    scores: Moments = field(default_factory=Moments)
    squares: float = 0.0
    entropy: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    def add_(self, scores: Tensor, targets: Tensor) -> None:
        z, y = (tensor.detach().cpu().double().flatten() for tensor in (scores, targets))
        z, y = z[y >= 0], y[y >= 0]
        if not len(y):
            return
        self.targets.add_(y)
        self.squares += float((z - y).square().sum())
        self.entropy += float(F.binary_cross_entropy_with_logits(z, y, reduction="sum"))
        self.lowest, self.highest = min(self.lowest, float(z.min())), max(self.highest, float(z.max()))

    @property
    def says_nothing(self) -> bool:
        return not 0 < self.targets.mean < 1 or self.lowest == self.highest

    @property
    def is_probability(self) -> bool:
        return self.lowest >= 0 and self.highest <= 1

    @property
    def is_value(self) -> bool:
        return self.squares < self.targets.squares

    @property
    def is_logit(self) -> bool:
        share = self.targets.mean
        base = -(share * math.log(share) + (1 - share) * math.log(1 - share))
        return not self.is_value and self.entropy < base * self.targets.count

    def refusal(self) -> InputError:
        return InputError(
            f"The labels are 0 and 1, and the model returns one number per sample, from {self.lowest:.3g} to "
            f"{self.highest:.3g}, which may be a logit or a value.",
            fix="Pass --loss bce if it is a logit, or --loss mse if it is a value.",
        )


class Survey:
    """Collects what a :class:`Reading` needs, batch by batch; the first batch says what that is.

    Args:
        loss: the name of a loss, or a function.
        targets: of the first batch.
        outputs: the dense model's, on it.
    """

    def __init__(self, loss: Any, targets: Tensor | None, outputs: Any) -> None:
        self._plain = kind_of(loss, targets, outputs)
        kind, scores = self._plain.kind, logits_of(outputs)
        values = kind == VALUES or self._plain.guessed
        by_targets = kind == VALUES and self._plain.labelled and not self._plain.custom
        self._targets = Moments() if by_targets else None
        self._outputs = Moments() if values and not by_targets else None
        self._others = tuple(Moments() for _ in others_of(outputs))
        self._maybe_probabilities = kind == CLASSES and are_distributions(scores)
        self._maybe_shares = kind == BINARY and are_shares(scores)
        self._evidence = None
        if loss == "auto" and targets is not None and one_score_each(scores, targets):
            zeros_and_ones = len(targets) == targets.numel() and are_labels(targets)
            self._evidence = _Evidence() if kind == BINARY or zeros_and_ones else None

    @property
    def wants_outputs(self) -> bool:
        """Whether outputs can still change the reading."""
        open_ends = (self._outputs, self._evidence, *self._others)
        return self._maybe_probabilities or self._maybe_shares or any(end is not None for end in open_ends)

    @property
    def settled(self) -> bool:
        """Whether nothing can change the reading any more."""
        return self._targets is None and not self.wants_outputs

    def add_(self, targets: Tensor | None, outputs: Any) -> None:
        """Take in a batch; ``outputs`` is None where the dense model did not run on it."""
        if self._targets is not None and targets is not None:
            self._targets.add_(targets)
        if self._evidence is not None and self._plain.kind == VALUES and not (targets is None or are_labels(targets)):
            self._evidence = None
        if outputs is None:
            return
        scores = logits_of(outputs)
        if self._outputs is not None:
            self._outputs.add_(scores)
        for moments, other in zip(self._others, others_of(outputs), strict=True):
            moments.add_(other)
        self._maybe_probabilities = self._maybe_probabilities and are_distributions(scores)
        self._maybe_shares = self._maybe_shares and are_shares(scores)
        if self._evidence is not None and targets is not None:
            self._evidence.add_(scores, targets)

    def reading(self) -> Reading:
        """What was found.

        Raises:
            InputError: the labels are 0 and 1, and the model's one number a sample may be a logit or a value.
        """
        kind = self._kind()
        moments = self._targets or self._outputs
        return replace(
            self._plain,
            kind=kind,
            probabilities=self._maybe_probabilities or (kind == BINARY and self._is_share()),
            scale=1.0 if moments is None or kind == BINARY else moments.scale,
            others=tuple(other.scale for other in self._others),
        )

    def _is_share(self) -> bool:
        return self._maybe_shares if self._evidence is None else self._evidence.is_probability

    def _kind(self) -> str:
        evidence, kind = self._evidence, self._plain.kind
        if evidence is None or evidence.says_nothing:
            return kind
        if evidence.is_probability:
            return BINARY
        if kind == VALUES and evidence.is_value:
            return VALUES
        if evidence.is_logit:
            return BINARY
        raise evidence.refusal()


def reading_of(
    loss: Any,
    train: AnySplit,
    answer: Callable[[Batch], Any],
    *,
    first: Batch,
    batch_size: int,
) -> Reading:
    """One pass over the training part, as far as the reading needs it.

    Every target counts. The dense model runs on at most :data:`MOST_SAMPLES` samples, whole batches evenly spread over
    the part, and not at all where the first batch settles everything, as it does for plain classification. No random
    state changes, neither the global ones nor those of a loader's own generators.

    Args:
        loss: the name of a loss, or a function.
        train: the training part, without augmentation.
        answer: the dense model's outputs on a batch.
        first: any batch of it.
        batch_size: samples a batch, where the part leaves that open.

    Raises:
        DataError: a target is not finite.
        InputError: it cannot be told what the model returns.
    """
    survey = Survey(loss, first.targets, answer(first))
    if survey.settled:
        return survey.reading()
    every, seen = math.ceil(len(train) / MOST_SAMPLES), 0
    with undisturbed(train):
        for position, batch in enumerate(train.batches(batch_size, seed=0 if isinstance(train, StreamSplit) else None)):
            _check_finite(batch.targets, seen)
            seen += len(batch)
            asked = survey.wants_outputs and position % every == 0
            survey.add_(batch.targets, answer(batch) if asked else None)
            if survey.settled:
                break
    return survey.reading()


def _check_finite(targets: Tensor | None, before: int) -> None:
    if targets is None or not targets.is_floating_point() or bool(targets.isfinite().all()):
        return
    wrong = ~targets.isfinite().reshape(len(targets), -1).all(1)
    raise DataError(
        f"Sample {before + int(wrong.nonzero()[0])} of the train part has a value that is not finite in the target.",
        fix="Remove or repair it.",
    )


def are_distributions(scores: Tensor) -> bool:
    """Whether every row of a matrix is a distribution, as behind a softmax.

    >>> import torch
    >>> are_distributions(torch.tensor([[0.5, 0.5], [1.0, 0.0]])), are_distributions(torch.tensor([[2.0, -1.0]]))
    (True, False)
    """
    if scores.dim() != 2 or scores.shape[1] < 2 or not scores.is_floating_point() or bool((scores < 0).any()):
        return False
    return bool(((scores.float().sum(1) - 1).abs() < 1e-3).all())


def are_shares(scores: Tensor) -> bool:
    """Whether every number lies between 0 and 1, as behind a sigmoid."""
    return scores.is_floating_point() and bool(((scores >= 0) & (scores <= 1)).all())


def are_labels(targets: Tensor) -> bool:
    """Whether every target is 0 or 1."""
    return bool(((targets == 0) | (targets == 1)).all())
