"""Attention and rotary positions as single nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.values import Refusal


@operator("Attention", many=True)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    wanted: int = 1,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 1,
) -> tuple[Tensor]:
    """Attention over (batch, heads, length, width), or (batch, length, heads * width) if head counts are given."""
    del qk_matmul_output_mode, softmax_precision
    if wanted > 1 or past_key is not None or past_value is not None or lengths is not None:
        raise Refusal("it keeps keys and values from call to call")
    if softcap:
        raise Refusal("it bounds its scores (softcap)")
    flat = query.dim() == 3
    if flat:
        query, key, value = _heads(query, q_num_heads), _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    if key.shape[1] != query.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    if mask is not None and is_causal:
        ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        mask, is_causal = _joined(mask, ones), 0
    out = F.scaled_dot_product_attention(query, key, value, mask, is_causal=bool(is_causal), scale=scale)
    return (out.transpose(1, 2).flatten(2) if flat else out,)


def _heads(x: Tensor, count: int | None) -> Tensor:
    if count is None:
        raise Refusal("it does not say how many heads it has")
    return x.unflatten(2, (count, x.shape[2] // count)).transpose(1, 2)


def _joined(mask: Tensor, allowed: Tensor) -> Tensor:
    return mask & allowed if mask.dtype is torch.bool else torch.where(allowed, mask, -torch.inf)


@operator("RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotary embedding. Source: the reference text of ONNX, RotaryEmbedding."""
    flat = x.dim() == 3
    heads = _heads(x, num_heads or None) if flat else x
    width = rotary_embedding_dim or heads.shape[3]
    turned, rest = heads[..., :width], heads[..., width:]
    cos, sin = (table if positions is None else F.embedding(positions, table) for table in (cosines, sines))
    cos, sin = cos[..., : width // 2].unsqueeze(1), sin[..., : width // 2].unsqueeze(1)
    if interleaved:
        real, imaginary = turned[..., 0::2], turned[..., 1::2]
    else:
        real, imaginary = turned.chunk(2, -1)
    first, second = cos * real - sin * imaginary, sin * real + cos * imaginary
    out = torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)
    joined = torch.cat([out, rest], -1) if width != heads.shape[3] else out
    return joined.transpose(1, 2).flatten(2) if flat else joined
