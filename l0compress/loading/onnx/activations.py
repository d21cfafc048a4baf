"""Activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import operator, register
from l0compress.loading.onnx.values import axis_of


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.0507010) < 1e-6:
        return F.selu(x)
    return gamma * F.elu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0.0)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Shrink. Source: the reference text of ONNX, Shrink."""
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@operator("com.microsoft::QuickGelu")
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@operator("com.microsoft::FastGelu")
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("com.microsoft::BiasGelu")
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


register("com.microsoft::Gelu", gelu)


@operator("PRelu", weights=(1,))
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Parametric ReLU; the slope broadcasts from the last dimension, and one per channel is PyTorch's own."""
    shared = slope.numel() == 1
    by_channel = slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0]
    if x.dim() >= 2 and (shared or (by_channel and slope.shape[0] == x.shape[1])):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x > 0, x, slope * x)


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


@operator("Softmax")
def flat_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax over all dimensions from ``axis`` on, as up to version 12 of the operators."""
    if axis_of(axis, x.dim()) == x.dim() - 1:
        return torch.softmax(x, -1)
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


@operator("LogSoftmax")
def flat_log_softmax(x: Tensor, *, axis: int = 1) -> Tensor:
    """Log-softmax over all dimensions from ``axis`` on, as up to version 12 of the operators."""
    if axis_of(axis, x.dim()) == x.dim() - 1:
        return torch.log_softmax(x, -1)
    return torch.log_softmax(x.flatten(axis), -1).reshape(x.shape)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    chosen = torch.argmax(x, dim=axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, chosen, 1.0)
