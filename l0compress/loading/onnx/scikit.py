"""The simple operators of ONNX's classical machine learning domain, as skl2onnx writes them around networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.values import Refusal

Floats = tuple[float, ...]


@operator("ai.onnx.ml::Scaler")
def scaler(x: Tensor, *, offset: Floats = (0.0,), scale: Floats = (1.0,)) -> Tensor:
    return (x - x.new_tensor(offset)) * x.new_tensor(scale)


@operator("ai.onnx.ml::Normalizer")
def normalizer(x: Tensor, *, norm: str = "MAX") -> Tensor:
    """Divide every row by its norm; rows of zeros stay zeros."""
    if norm == "MAX":
        size = x.amax(-1, keepdim=True)
    else:
        size = torch.linalg.vector_norm(x, 1 if norm == "L1" else 2, -1, keepdim=True)
    return x / torch.where(size == 0, 1.0, size)


@operator("ai.onnx.ml::LinearRegressor")
def linear_regressor(
    x: Tensor, *, coefficients: Floats, intercepts: Floats | None = None, post_transform: str = "NONE", targets: int = 1
) -> Tensor:
    return _transformed(_scores(x, coefficients, intercepts, targets), post_transform)


@operator("ai.onnx.ml::LinearClassifier", many=True)
def linear_classifier(
    x: Tensor,
    *,
    wanted: int = 2,
    classlabels_ints: tuple[int, ...] = (),
    classlabels_strings: tuple[str, ...] = (),
    coefficients: Floats,
    intercepts: Floats | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Any, ...]:
    """Return the scores; the label is dropped."""
    del wanted, multi_class
    classes = len(classlabels_ints) or len(classlabels_strings)
    if not classes or len(coefficients) % classes or len(coefficients) // classes != x.shape[-1]:
        raise Refusal(f"it has {len(coefficients)} coefficients for {classes} classes")
    return None, _transformed(_scores(x, coefficients, intercepts, classes), post_transform)


def _scores(x: Tensor, coefficients: Floats, intercepts: Floats | None, count: int) -> Tensor:
    weight = x.new_tensor(coefficients).reshape(count, -1)
    return F.linear(x, weight, None if not intercepts else x.new_tensor(intercepts))


def _transformed(scores: Tensor, transform: str) -> Tensor:
    if transform == "SOFTMAX":
        return torch.softmax(scores, -1)
    if transform == "LOGISTIC":
        return torch.sigmoid(scores)
    if transform != "NONE":
        raise Refusal(f"its post_transform is {transform!r}")
    return scores
