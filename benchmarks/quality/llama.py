"""A small Llama in plain PyTorch, the files of llama2.c that hold one, and the stories that it writes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BEGIN = 1


@dataclass(frozen=True)
class Sizes:
    """The header of a checkpoint; ``kv_heads`` heads of keys and values serve ``heads`` heads of queries."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int

    @property
    def head(self) -> int:
        return self.dim // self.heads


class Layer(nn.Module):
    """Attention with rotary positions and grouped queries, and a gated feed-forward network."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        keys = sizes.kv_heads * sizes.head
        self.attention_norm = nn.RMSNorm(sizes.dim, eps=1e-5)
        self.wq, self.wk = nn.Linear(sizes.dim, sizes.dim, bias=False), nn.Linear(sizes.dim, keys, bias=False)
        self.wv, self.wo = nn.Linear(sizes.dim, keys, bias=False), nn.Linear(sizes.dim, sizes.dim, bias=False)
        self.ffn_norm = nn.RMSNorm(sizes.dim, eps=1e-5)
        self.w1, self.w3 = (nn.Linear(sizes.dim, sizes.hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(sizes.hidden, sizes.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``(n, length, dim)`` to the same."""
        q, k, v = self.projected(x, cos, sin)
        return self.fed(x, F.scaled_dot_product_attention(q, *self.shared(k, v), is_causal=True))

    def projected(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(n, heads, length, head)``, the first two turned by their positions."""
        normed, (n, length, _) = self.attention_norm(x), x.shape
        q, k, v = (w(normed).view(n, length, -1, self.sizes.head).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        return turned(q, cos, sin), turned(k, cos, sin), v

    def shared(self, *heads: Tensor) -> list[Tensor]:
        """Heads of keys and values, each as often as queries use it."""
        return [head.repeat_interleave(self.sizes.heads // self.sizes.kv_heads, dim=1) for head in heads]

    def fed(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention ``(n, heads, length, head)``."""
        x = x + self.wo(attended.transpose(1, 2).flatten(2))
        normed = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(normed)) * self.w3(normed))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: neighbouring pairs ``(2i, 2i + 1)`` of ``(n, heads, length, head)`` turn together.

    >>> turned(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.zeros(1, 1), torch.ones(1, 1)).flatten()
    tensor([0., 1.])
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Llama(nn.Module):
    """Token ids ``(n, length)`` to logits ``(n, length, vocabulary)``; the embedding is the output layer, too."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.dim)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.dim, eps=1e-5)
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.zeros(sizes.length, sizes.head // 2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def write(self, samples: int, length: int, *, seed: int) -> Tensor:
        """Stories, int64 ``(samples, length)``, each token drawn from the model's own distribution."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.full((samples, 1), BEGIN)
        past: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        for position in range(length - 1):
            x = self.embedding(tokens[:, -1:])
            cos, sin = self.cos[position : position + 1], self.sin[position : position + 1]
            for index, layer in enumerate(self.layers):
                q, k, v = layer.projected(x, cos, sin)
                before = past[index]
                if before is not None:
                    k, v = torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)
                past[index] = (k, v)
                x = layer.fed(x, F.scaled_dot_product_attention(q, *layer.shared(k, v)))
            chances = F.linear(self.norm(x[:, 0]), self.embedding.weight).softmax(-1)
            tokens = torch.cat((tokens, torch.multinomial(chances, 1, generator=generator)), dim=1)
        return tokens


def read_checkpoint(path: Path) -> Llama:
    """A model from a file in llama2.c's first format: seven int32, then float32 tensors in a fixed order."""
    content = path.read_bytes()
    sizes = Sizes(*struct.unpack("<7i", content[:28]))
    values = torch.from_numpy(np.frombuffer(content, "<f4", offset=28).copy())
    model, place = Llama(sizes), 0

    def take(*targets: Tensor) -> None:
        nonlocal place
        for target in targets:
            target.data.copy_(values[place : place + target.numel()].view_as(target))
            place += target.numel()

    take(model.embedding.weight)
    for name in ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"):
        take(*(getattr(layer, name).weight for layer in model.layers))
    take(model.norm.weight, model.cos, model.sin)
    if place != len(values):
        raise ValueError(f"{path} holds {len(values):,} numbers, and its header speaks of {place:,}")
    return model.eval()


def read_tokens(path: Path, count: int) -> list[bytes]:
    """What each token stands for: int32 longest, then float32 score, int32 length and the bytes of each."""
    content, place, tokens = path.read_bytes(), 4, []
    for _ in range(count):
        (length,) = struct.unpack_from("<i", content, place + 4)
        tokens.append(content[place + 8 : place + 8 + length])
        place += 8 + length
    return tokens
