"""Attention over channels, and tied embeddings: what may go, and what stays for which reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, image, reasons, table, tokens
from proofs import assert_exact, assert_exports, assert_gateable, graph_of, prunable_share
from torch import Tensor, nn

from l0compress.graph import CapturedGraph, find_groups


def squeeze_excite(s: Any, x: Tensor) -> Tensor:
    x = F.silu(s.c(x))
    scale = torch.sigmoid(s.e(F.relu(s.r(F.adaptive_avg_pool2d(x, 1).flatten(1)))))
    return s.h(s.o(x * scale.view(-1, 8, 1, 1).expand_as(x)).mean((2, 3)))


def along_channels(s: Any, x: Tensor) -> Tensor:
    x = F.silu(s.c(x))
    scale = torch.sigmoid(s.k(x.mean((2, 3)).unsqueeze(1)).squeeze(1))
    return s.h(s.o(x * scale[:, :, None, None]).mean((2, 3)))


def channels_then_positions(s: Any, x: Tensor) -> Tensor:
    def hidden(pooled: Tensor) -> Tensor:
        return s.e(F.relu(s.r(pooled)))

    x = F.gelu(s.c(x))
    x = x * torch.sigmoid(hidden(x.mean((2, 3), keepdim=True)) + hidden(x.amax((2, 3), keepdim=True)))
    maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return s.h(s.o(x * torch.sigmoid(s.k(maps))).mean((2, 3)))


def cross_covariance(s: Any, x: Tensor) -> Tensor:
    """XCiT: a softmax over channels by channels in each head; queries and keys are normalised over tokens."""
    batch, length, width = x.shape
    q, k, v = s.qkv(x).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 4, 1).unbind(0)
    weights = ((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * s.temperature).softmax(-1)
    return s.h(s.o((weights @ v).permute(0, 3, 1, 2).reshape(batch, length, width)))


def tied_embeddings(s: Any, ids: Tensor) -> Tensor:
    return F.linear(s.b(F.gelu(s.a(s.emb(ids)))), s.emb.weight)


def convolutional(function: Callable[..., Any], **more: Any) -> nn.Module:
    return Net(function, c=nn.Conv2d(3, 8, 3, padding=1), o=nn.Conv2d(8, 6, 1), h=nn.Linear(6, 3), **more)


IDS = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(1))
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "squeeze-excite": (
        lambda: convolutional(squeeze_excite, r=nn.Linear(8, 4), e=nn.Linear(4, 8)),
        image(),
        {"c channels": 8, "r channels": 4, "o channels": 6},
    ),
    "ECA": (lambda: convolutional(along_channels, k=nn.Conv1d(1, 1, 3, padding=1)), image(), {"o channels": 6}),
    "CBAM": (
        lambda: convolutional(
            channels_then_positions, r=nn.Conv2d(8, 4, 1), e=nn.Conv2d(4, 8, 1), k=nn.Conv2d(2, 1, 3, padding=1)
        ),
        image(),
        {"c channels": 8, "o channels": 6, "r channels": 4},
    ),
    "XCiT": (
        lambda: Net(
            cross_covariance,
            qkv=nn.Linear(24, 72),
            o=nn.Linear(24, 24),
            h=nn.Linear(24, 3),
            temperature=nn.Parameter(torch.ones(4, 1, 1)),
        ),
        tokens(24),
        {"temperature width": 4, "qkv inputs": 24, "o channels": 24},
    ),
    "tied embeddings": (
        lambda: Net(tied_embeddings, emb=nn.Embedding(20, 8), a=nn.Linear(8, 12), b=nn.Linear(12, 8)),
        IDS,
        {"a channels": 12, "b channels": 8},
    ),
}


def build(name: str) -> CapturedGraph:
    make, x, _ = NETWORKS[name]
    return graph_of(make(), x)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", NETWORKS)
def test_channels_go_where_nothing_mixes_them(name: str) -> None:
    groups = assert_exact(build(name))
    assert table(groups) == NETWORKS[name][2]
    assert prunable_share(groups) > {"ECA": 0.2, "CBAM": 0.94}.get(name, 0.95)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", NETWORKS)
def test_gates_stand_for_them(name: str) -> None:
    assert_gateable(build(name))


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    assert_exports(build(name), tmp_path)


def test_the_reasons_for_the_others() -> None:
    assert reasons(find_groups(build("ECA")), "c.bias") == [(0, "conv1d", "a convolution slides over it")]
    assert reasons(find_groups(build("tied embeddings")), "emb.weight") == [
        (0, "embedding", "its rows are chosen by index at run time")
    ]
