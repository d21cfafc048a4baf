"""How a run reads what its model returns, as classes or as values, and what its scores mean for that reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from l0compress.errors import DataError
from l0compress.training.outputs import class_last, logits_of, one_score_each

CLASSES, BINARY, VALUES = "classes", "binary", "values"


@dataclass(frozen=True)
class Reading:
    """How outputs and targets are read.

    Attributes:
        kind: "classes" (a score for each class), "binary" (one for the two classes 0 and 1) or "values".
        labelled: the data have targets; otherwise outputs are compared with the dense model's.
        guessed: nobody has said that the outputs are classes, so they are compared as values as well.
        custom: the loss is the user's own.
        probabilities: the model ends in a softmax or sigmoid, so that logarithms are the logits.
        scale: divides squared errors: the variance of the targets in the training part, or that of the dense model's
            outputs where there are no targets or the loss is the user's own.
        others: likewise, one for each further output.
    """

    kind: str
    labelled: bool = True
    guessed: bool = False
    custom: bool = False
    probabilities: bool = False
    scale: float = 1.0
    others: tuple[float, ...] = ()

    @property
    def counts_hits(self) -> bool:
        """Whether models are judged by how many classes are right."""
        return self.kind != VALUES and not self.custom

    @property
    def is_measured(self) -> bool:
        """Whether a number or a choice in it took a look at more than one batch."""
        return self.kind != CLASSES or self.guessed or bool(self.others)

    @property
    def score_name(self) -> str:
        """What the metric is, in words.

        >>> Reading(CLASSES).score_name, Reading(VALUES).score_name, Reading(VALUES, custom=True).score_name
        ('accuracy', 'relative squared error', 'loss')
        """
        if self.counts_hits:
            return "accuracy" if self.labelled else "agreement"
        return "relative squared error" if self.kind == VALUES and not (self.custom and self.labelled) else "loss"

    @property
    def meaning(self) -> str | None:
        """What the metric says, where its name does not.

        >>> Reading(VALUES, scale=0.25).meaning
        'Relative squared error: the mean squared error over the variance of the targets in the training part, 0.25. 0
        is exact, and 1 is no better than their mean.'
        """
        if self.score_name == "agreement":
            return "Agreement: how often the highest-scoring class is the dense model's."
        if self.score_name == "loss":
            return "Loss: that of --loss." if self.labelled else None
        if self.score_name == "accuracy":
            return None
        if self.labelled:
            over, than = f"the variance of the targets in the training part, {self.scale:.4g}", "their mean"
        else:
            over = f"the variance of the dense model's outputs in the training part, {self.scale:.4g}"
            than = "their mean"
        several = ", summed over all outputs" if self.others and not self.labelled else ""
        error = "mean squared error" if self.labelled else "mean squared distance from the dense model's outputs"
        return f"Relative squared error: the {error} over {over}{several}. 0 is exact, and 1 is no better than {than}."

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "others": list(self.others)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Reading | None:
        """What :meth:`to_json` returned; None stays None.

        >>> Reading.from_json(Reading(VALUES, others=(2.0,)).to_json())
        Reading(kind='values', labelled=True, guessed=False, custom=False, probabilities=False, scale=1.0,
        others=(2.0,))
        """
        return None if values is None else cls(**{**values, "others": tuple(values["others"])})


def kind_of(loss: Any, targets: Tensor | None, outputs: Any) -> Reading:
    """What the names, types and shapes of one batch say. Every batch says the same, since none of them is a value."""
    custom, scores = callable(loss), logits_of(outputs)
    named = {"mse": VALUES, "cross-entropy": CLASSES, "bce": BINARY}.get("" if custom else loss)
    plain = Reading(named or CLASSES, labelled=targets is not None, custom=custom)
    if named is not None:
        return plain
    if targets is None:
        if isinstance(outputs, Mapping):
            return plain if "logits" in outputs else replace(plain, kind=VALUES)
        matrix = scores.dim() == 2 and scores.shape[1] >= 2
        return replace(plain, guessed=True) if matrix else replace(plain, kind=VALUES)
    if targets.is_floating_point() or (custom and not _fits(scores, targets)):
        return replace(plain, kind=VALUES)
    return replace(plain, kind=BINARY) if one_score_each(scores, targets) else plain


def _fits(scores: Tensor, targets: Tensor) -> bool:
    """Whether a loss of the user's own may be one of classes."""
    try:
        class_last(scores, targets)
    except DataError:
        return one_score_each(scores, targets)
    return True
