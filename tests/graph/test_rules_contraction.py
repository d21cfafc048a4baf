"""Einsum is what it is made of, and a bilinear product reads its weight twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import captured, image, tokens, vector
from rulechecks import check
from torch import Tensor, nn

from l0compress.graph import capture, cost

HEADS = {"o blocks": 4}


def attention(scores: str, mixed: str) -> Callable[[nn.Module, Tensor], Tensor]:
    def net(s: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 4)) for layer in (s.q, s.k, s.v))
        weights = torch.einsum(scores, q, k).softmax(-1)
        return s.o(torch.einsum(mixed, weights, v).flatten(2))

    return net


@pytest.mark.parametrize(
    "scores, mixed",
    [("bnhd,bmhd->bhnm", "bhnm,bmhd->bnhd"), ("b n h d, b m h d -> b h n m", "...hnm,...mhd->...nhd")],
)
@pytest.mark.slow
def test_attention_by_einsum(tmp_path: Path, scores: str, mixed: str) -> None:
    layers = {name: nn.Linear(12, 16) for name in "qkv"} | {"o": nn.Linear(16, 3)}
    inputs = {f"{name} inputs": 12 for name in "qkv"}
    expected = {"q blocks": 4, "q width": 4, "v width": 4, **inputs}
    check(attention(scores, mixed), tokens(), expected, onnx=tmp_path, **layers)


# Of h with shape (batch, 5, 8) and a parameter: the equation, the parameter's shape, the width that it leaves.
PRODUCTS: dict[str, tuple[str, tuple[int, ...], int, dict[str, int]]] = {
    "a linear layer": ("bnc,oc->bno", (6, 8), 6, {"a channels": 8, "w channels": 6}),
    "a transposed one": ("bnc,co->bno", (8, 6), 6, {"w channels": 8, "w #2 channels": 6}),
    "folded rows and columns": ("bnc,coh->bnoh", (8, 3, 4), 12, {"w channels": 8, "w blocks": 3, "w width": 4}),
    "implicit result": ("bnz,zp", (8, 6), 6, {"w channels": 8, "w #2 channels": 6}),
    "ellipsis": ("...c,oc->...o", (6, 8), 6, {"a channels": 8, "w channels": 6}),
    "a scale": ("bnc,c->bnc", (8,), 8, {"w channels": 8}),
    "a letter of its own": ("bnc,kc->bnc", (3, 8), 8, {"w channels": 3, "a channels": 8}),
    "no order": ("bnc,oc->obn", (6, 8), 6, {"a channels": 8, "w channels": 6}),
}


@pytest.mark.mostly_slow
@pytest.mark.parametrize("form", PRODUCTS)
def test_products_with_weights(tmp_path: Path, form: str) -> None:
    equation, shape, width, expected = PRODUCTS[form]

    def net(s: nn.Module, x: Tensor) -> Tensor:
        h = torch.einsum(equation, F.gelu(s.a(x)), s.w)
        h = h.permute(1, 2, 0) if form == "no order" else h
        return s.b(F.gelu(h.flatten(2)))

    layers = {"a": nn.Linear(12, 8), "w": nn.Parameter(torch.zeros(shape)), "b": nn.Linear(width, 4)}
    check(net, tokens(), {**expected, "a inputs": 12}, onnx=tmp_path, **layers)


EQUATIONS = [
    ("ij->ji", [(2, 3)]),
    ("bij->b", [(2, 3, 4)]),
    ("bij->bji", [(2, 3, 4)]),
    ("bi,bj->bij", [(2, 3), (2, 4)]),
    ("bi,bi->b", [(2, 3), (2, 3)]),
    ("bhwc,hkc->bhwk", [(2, 3, 4, 5), (3, 6, 5)]),
    ("bhd,hde->be", [(2, 3, 4), (3, 4, 5)]),
    ("bxhd,byhd->bhxy", [(2, 3, 4, 5), (2, 6, 4, 5)]),
    ("bi,oij,bj->bo", [(2, 3), (4, 3, 5), (2, 5)]),
    ("bi,bj,bk->bijk", [(2, 3), (2, 4), (2, 5)]),
    ("...ij,jk->...ik", [(2, 7, 3, 4), (4, 5)]),
    ("b...i,...j->b...ij", [(2, 3, 4), (3, 5)]),
    ("bij,bjk,bkl->bil", [(2, 3, 4), (2, 4, 5), (2, 5, 6)]),
    ("bixy,bjxy->bij", [(2, 3, 4, 5), (2, 6, 4, 5)]),
    ("bii->bi", [(2, 3, 3)]),
]


@pytest.mark.parametrize("equation, shapes", EQUATIONS)
def test_einsum_is_what_it_is_made_of(equation: str, shapes: list[tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, *rest = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)

    class Einsum(nn.Module):
        def forward(self, x: Tensor, others: list[Tensor]) -> Tensor:
            return torch.einsum(equation, x, *others)

    graph = capture(Einsum(), (first, rest), dynamic=None)
    assert ("einsum" in str(graph.graph_module.graph)) is (equation == "bii->bi")
    assert torch.allclose(graph.module()(first, rest), torch.einsum(equation, first, *rest), rtol=1e-12, atol=1e-12)


def test_multiply_accumulates_of_an_einsum_are_those_of_its_product() -> None:
    graph = captured(lambda s, x: torch.einsum("bnc,oc->bno", x, s.w), tokens(), w=nn.Parameter(torch.zeros(6, 12)))
    assert cost(graph).macs == 5 * 6 * 12


@pytest.mark.slow
def test_bilinear(tmp_path: Path) -> None:
    layers = {"a": nn.Linear(6, 4), "c": nn.Linear(6, 5), "m": nn.Bilinear(4, 5, 7), "b": nn.Linear(7, 3)}
    expected = {"a channels": 4, "c channels": 5, "m channels": 7, "a inputs": 6, "c inputs": 6}
    graph = check(lambda s, x: s.b(s.m(F.gelu(s.a(x)), F.gelu(s.c(x)))), vector(), expected, onnx=tmp_path, **layers)
    assert cost(graph).macs == 6 * 4 + 6 * 5 + 7 * 4 * 5 + 7 * 3


def test_a_bilinear_product_with_the_input_keeps_what_reads_it() -> None:
    layers = {"a": nn.Linear(6, 4), "m": nn.Bilinear(4, 6, 7), "b": nn.Linear(7, 3)}
    check(
        lambda s, x: s.b(s.m(F.gelu(s.a(x)), x)), vector(), {"a channels": 4, "m channels": 7, "a inputs": 6}, **layers
    )


def test_images_by_einsum() -> None:
    def net(s: nn.Module, x: Tensor) -> Tensor:
        return torch.einsum("bchw,oc->bo", F.gelu(torch.einsum("bihw,ci->bchw", x, s.a)), s.o)

    layers = {"a": nn.Parameter(torch.zeros(8, 3)), "o": nn.Parameter(torch.zeros(4, 8))}
    check(net, image(), {"a channels": 8}, **layers)
