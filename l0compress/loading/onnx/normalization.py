"""Normalisation, and dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.values import Refusal, axis_of, number


@operator("BatchNormalization", many=True, weights=(1, 2), statistics=(3, 4))
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    wanted: int = 1,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> tuple[Tensor]:
    """Batch norm; ONNX's momentum is the weight of the old statistics, PyTorch's that of the new ones."""
    del training_mode  # the mode that the file was exported in; the outputs tell whether it matters
    if not spatial:
        raise Refusal("it normalises every position separately (spatial=0)")
    if wanted > 1:
        raise Refusal("it returns its statistics, so it was exported for training")
    # In evaluation mode here; once captured, it switches between the modes like PyTorch's own.
    return (F.batch_norm(x, mean, variance, scale, bias, False, 1 - momentum, epsilon),)


@operator("InstanceNormalization", weights=(1, 2))
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization", many=True, weights=(1, 2))
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    wanted: int = 1,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor]:
    del stash_type  # a precision that float32 always has
    if wanted > 1:
        raise Refusal("it returns its statistics")
    sizes = list(x.shape[axis_of(axis, x.dim()) :])
    if list(scale.shape) == sizes and (bias is None or bias.shape == scale.shape):
        return (F.layer_norm(x, sizes, scale, bias, epsilon),)
    normal = F.layer_norm(x, sizes, eps=epsilon) * scale
    return (normal if bias is None else normal + bias,)


@operator("com.microsoft::SkipLayerNormalization", many=True, weights=(2, 3, 4))
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    wanted: int = 1,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:
    """Layer norm of a sum; the sum itself is the fourth output."""
    joined = x + skip if bias is None else x + skip + bias
    normal = F.layer_norm(joined, list(scale.shape), scale, shift, epsilon)
    return (normal,) if wanted == 1 else (normal, None, None, joined)


@operator("RMSNormalization", weights=(1,))
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    del stash_type
    sizes = list(x.shape[axis_of(axis, x.dim()) :])
    if list(scale.shape) == sizes:
        return F.rms_norm(x, sizes, scale, epsilon)
    return F.rms_norm(x, sizes, eps=epsilon) * scale


@operator("GroupNormalization", since=21, weights=(1, 2))
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    del stash_type
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LRN")
def local_response(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    if size % 2 == 0:
        raise Refusal(f"its window has an even number of channels ({size}), which PyTorch centres differently")
    return F.local_response_norm(x, size, alpha, beta, bias)


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return x / torch.linalg.vector_norm(x, p, axis, keepdim=True)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("Dropout", many=True, sizes=(1, 2))
def dropout(
    x: Tensor,
    ratio_given: float | None = None,
    training_given: bool | None = None,
    *,
    wanted: int = 1,
    ratio: float = 0.5,
    seed: int = 0,
) -> tuple[Tensor]:
    """Dropout, off here; once captured, training switches it on, whatever the file was exported for."""
    del training_given, seed
    if wanted > 1:
        raise Refusal("it returns its dropout mask")
    return (F.dropout(x, ratio if ratio_given is None else float(number(ratio_given)), False),)
