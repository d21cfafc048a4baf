"""A model in a format of its own: a small Llama with weights in the format of llama2.c.

    python examples/stories260k.py stories260K.bin stories260k.safetensors
    l0compress inspect  stories260k.safetensors --factory stories260k:build --data stories260k:stories
    l0compress finetune stories260k.safetensors --factory stories260k:build --data stories260k:stories \
        --target params=0.7

:func:`build` is all that the command line needs to know about your model. :func:`stories` are token
sequences that the model itself generates, so no corpus is needed; $L0COMPRESS_STORIES names the converted weights.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = "L0COMPRESS_STORIES"
LENGTH = 32


@dataclass(frozen=True)
class Shape:
    """The seven numbers at the head of a llama2.c file."""

    dim: int = 64
    hidden: int = 172
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    vocabulary: int = 512
    length: int = 512

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class Attention(nn.Module):
    """Causal attention with grouped keys and values, and rotary positions on pairs of neighbours."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.wq = nn.Linear(shape.dim, shape.heads * shape.head_dim, bias=False)
        self.wk = nn.Linear(shape.dim, shape.kv_heads * shape.head_dim, bias=False)
        self.wv = nn.Linear(shape.dim, shape.kv_heads * shape.head_dim, bias=False)
        self.wo = nn.Linear(shape.heads * shape.head_dim, shape.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = rotated(self.wq(x).view(batch, length, self.heads, self.head_dim), cos, sin).transpose(1, 2)
        k = rotated(self.wk(x).view(batch, length, self.kv_heads, self.head_dim), cos, sin).transpose(1, 2)
        v = self.wv(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        share = self.heads // self.kv_heads
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of neighbours by its angle; ``x`` is (batch, length, heads, head_dim)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2)


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each after a norm and with a residual connection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(shape.dim, eps=1e-5), nn.RMSNorm(shape.dim, eps=1e-5)
        self.attention = Attention(shape)
        self.w1 = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.w2 = nn.Linear(shape.hidden, shape.dim, bias=False)
        self.w3 = nn.Linear(shape.dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Llama(nn.Module):
    """Maps token ids (batch, length) to next-token scores (batch, length, vocabulary)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, eps=1e-5)
        rates = 10_000.0 ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(shape.length), rates)[:, None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return F.linear(self.norm(x), self.embedding.weight)


def build(layers: int = 5) -> nn.Module:
    """Return the architecture that the weights fill: what ``--factory stories260k:build`` calls."""
    return Llama(Shape(layers=layers))


def converted(path: Path) -> dict[str, Tensor]:
    """Read the weights of a llama2.c file, under the names of :func:`build`'s module."""
    shape = Shape(*(int(number) for number in np.fromfile(path, "<i4", 7)))
    numbers = torch.from_numpy(np.fromfile(path, "<f4", offset=28))
    kv = shape.kv_heads * shape.head_dim
    square, wide = (shape.dim, shape.dim), (shape.hidden, shape.dim)
    names = {
        "attention_norm": (shape.dim,), "attention.wq": square, "attention.wk": (kv, shape.dim),
        "attention.wv": (kv, shape.dim), "attention.wo": square, "ffn_norm": (shape.dim,), "w1": wide,
        "w2": (shape.dim, shape.hidden), "w3": wide,
    }  # fmt: skip
    weights, start = {}, 0

    def take(size: tuple[int, ...]) -> Tensor:
        nonlocal start
        start += int(np.prod(size))
        return numbers[start - int(np.prod(size)) : start].view(size).clone()

    weights["embedding.weight"] = take((shape.vocabulary, shape.dim))
    for name, size in names.items():
        for layer, tensor in enumerate(take((shape.layers, *size))):
            weights[f"blocks.{layer}.{name}.weight"] = tensor.clone()
    weights["norm.weight"] = take((shape.dim,))
    return weights


def stories() -> dict[str, tuple[Tensor, Tensor]]:
    """Return token sequences generated by the model, each with the sequence shifted by one token as its target."""
    model = build()
    model.load_state_dict(load_file(os.environ.get(WEIGHTS, "stories260k.safetensors")))
    ids = torch.ones(192, 1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(LENGTH):
            likely = model.eval()(ids)[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(likely, 1, generator=generator)], dim=1)
    parts = {"train": slice(0, 128), "val": slice(128, 160), "test": slice(160, 192)}
    return {part: (ids[rows, :-1], ids[rows, 1:]) for part, rows in parts.items()}


if __name__ == "__main__":
    source, destination = sys.argv[1:]
    save_file(converted(Path(source)), destination)
    print(f"wrote {destination}")
