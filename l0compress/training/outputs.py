"""Which tensor of what a model returns is meant by labels and scores, and how it lies beside them.

Model outputs may be a tensor, a tuple or list, or a mapping; :func:`logits_of` says which tensor is meant by labels and
by the metric. The others are taught by the dense model alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.data.batches import Batch
from l0compress.errors import DataError
from l0compress.verification.calls import named_leaves

IGNORED = -100
# The least probability whose logarithm is taken.
TINY = 1e-12


def outputs_of(module: nn.Module, batch: Batch) -> Any:
    """What a model returns on a batch, without gradients."""
    with torch.no_grad():
        return batch.run(module)


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
        f"The model returns {type(outputs).__name__} with no tensor in it, so no loss can be computed.",
        fix="Return a tensor, a tuple that starts with one, or a mapping with the key 'logits'.",
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
        f"The model's output of shape {tuple(logits.shape)} does not fit class labels of shape {tuple(targets.shape)}.",
        fix="Give one integer label for each row of class scores, or use the loss 'mse' for regression.",
    )


def checked_labels(targets: Tensor, num_classes: int) -> Tensor:
    """Class labels as int64, whatever their type; -100 leaves a sample out.

    >>> checked_labels(torch.tensor([True, False]), 2), checked_labels(torch.tensor([1, -100], dtype=torch.int32), 2)
    (tensor([1, 0]), tensor([   1, -100]))

    Raises:
        DataError: a label is no class of the model; the message names its sample.
    """
    labels = targets.long()
    wrong = (labels < 0) | (labels >= num_classes)
    wrong = (wrong & (labels != IGNORED)) | (labels != targets)
    if wrong.any():
        position = tuple(wrong.nonzero()[0].tolist())
        raise DataError(
            f"Label {targets[position].item():g} of sample {position[0]} of a batch is out of range: the model has "
            f"{num_classes} classes, so labels are 0 to {num_classes - 1}. Give labels of the model's classes; -100 "
            "leaves a sample out; for regression pass --loss mse."
        )
    return labels


def one_score_each(scores: Tensor, targets: Tensor) -> bool:
    """Whether a model returns one number for each label and nothing that could be a dimension of classes.

    >>> one_score_each(torch.zeros(3, 1), torch.zeros(3)), one_score_each(torch.zeros(3, 1, 4, 4), torch.zeros(3, 4, 4))
    (True, True)
    >>> one_score_each(torch.zeros(3, 2), torch.zeros(3)), one_score_each(torch.zeros(3, 2), torch.zeros(3, 2))
    (False, False)
    """
    channels = scores.shape[1:2] + scores.shape[-1:]
    return scores.numel() == targets.numel() and (scores.dim() == 1 or 1 in channels)


def two_classes(scores: Tensor, shape: torch.Size, *, probabilities: bool) -> Tensor:
    """Scores of the classes 0 and 1, ``(*shape, 2)``, whose softmax is what one logit or probability says of each.

    >>> two_classes(torch.tensor([[0.5]]), torch.Size([1]), probabilities=False)
    tensor([[0.0000, 0.5000]])
    >>> two_classes(torch.tensor([[0.25]]), torch.Size([1]), probabilities=True).exp()
    tensor([[0.7500, 0.2500]])

    Raises:
        DataError: there is not one number for each label.
    """
    if scores.numel() != shape.numel():
        raise DataError(
            f"The model's output of shape {tuple(scores.shape)} does not fit labels of shape {tuple(shape)}.",
            fix="The loss 'bce' takes one number for each label of 0 or 1.",
        )
    flat = scores.float().reshape(shape)
    if not probabilities:
        return torch.stack([torch.zeros_like(flat), flat], -1)
    return torch.stack([1 - flat, flat], -1).clamp_min(TINY).log()
