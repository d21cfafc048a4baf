"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import operator, register


@operator("Gemm", weights=(1, 2))
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Compute alpha * a @ b + beta * c, as a linear layer if it is one."""
    rows = a.t() if transA else a
    bias = c if c is None or beta == 1.0 else c * beta
    if transB and alpha == 1.0 and (bias is None or bias.dim() == 1):
        return F.linear(rows, b, bias)
    product = F.linear(rows, b) if transB else torch.matmul(rows, b)
    scaled = product if alpha == 1.0 else product * alpha
    return scaled if bias is None else scaled + bias


@operator("MatMul", weights=(1,))
def matmul(left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left, right)


@operator("com.microsoft::FusedMatMul", weights=(1,))
def fused_matmul(left: Tensor, right: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    first = left.transpose(-1, -2) if transA else left
    second = right.transpose(-1, -2) if transB else right
    product = torch.matmul(first, second)
    return product if alpha == 1.0 else product * alpha


@operator("Einsum")
def einsum(*operands: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *operands)


def determinant(x: Tensor) -> Any:
    return torch.linalg.det(x)


register("Det", determinant)
