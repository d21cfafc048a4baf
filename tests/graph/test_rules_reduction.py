"""A sum over channels reads them: what is removed contributes nothing, and a mean keeps its dense count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import grouped, image, table, tokens, vector
from rulechecks import check
from torch import Tensor, nn

pytestmark = pytest.mark.slow


def channel_attention(h: Tensor) -> Tensor:
    return h * torch.sigmoid(h.mean(1, keepdim=True))


def rms_norm(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def layer_norm(h: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)


VECTOR_FORMS = {
    "sum": lambda h: h * torch.tanh(h.sum(1, keepdim=True)),
    "sum of all": lambda h: h * torch.tanh(h.sum()),
    "mean": lambda h: h - h.mean(-1, keepdim=True),
    "mean of all": lambda h: h * h.mean(),
    "mean of a cast": lambda h: h - h.mean(-1, keepdim=True, dtype=torch.float32),
    "norm": lambda h: h / h.norm(dim=-1, keepdim=True),
    "norm of order one": lambda h: h / torch.linalg.vector_norm(h, 1, -1, keepdim=True),
    "largest magnitude": lambda h: h / torch.linalg.vector_norm(h, float("inf"), -1, keepdim=True),
    "norm by its other name": lambda h: h / torch.linalg.norm(h, dim=-1, keepdim=True),
    "normalised": lambda h: F.normalize(h, dim=-1),
    "rms norm by hand": rms_norm,
    "layer norm by hand": layer_norm,
    "largest": lambda h: h - h.amax(-1, keepdim=True),
    "smallest": lambda h: h - h.amin((1,), keepdim=True),
    "logarithm of a sum of exponentials": lambda h: h - h.logsumexp(1, keepdim=True),
    "deviation": lambda h: h / h.std(-1, keepdim=True),
    "variance": lambda h: h / h.var(1, correction=0, keepdim=True),
    "variance of all": lambda h: h / h.var(unbiased=False),
    "variance and mean": lambda h: torch.sub(h, torch.var_mean(h, 1, keepdim=True)[1]) / h.var(1, keepdim=True),
    "softmax": lambda h: h * h.softmax(-1),
    "logarithm of a softmax": lambda h: h.log_softmax(1),
}


@pytest.mark.parametrize("form", VECTOR_FORMS)
def test_sums_over_features(tmp_path: Path, form: str) -> None:
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 4)}
    check(
        lambda s, x: s.b(VECTOR_FORMS[form](s.a(x))),
        vector(),
        {"a channels": 8, "a inputs": 6},
        onnx=tmp_path,
        **layers,
    )


IMAGE_FORMS = {
    "mean over channels": channel_attention,
    "softmax over channels": lambda h: h * h.softmax(1),
    "largest channel at a place": lambda h: h * torch.sigmoid(h.amax(1, keepdim=True)),
    "deviation over everything": lambda h: h / h.std((1, 2, 3), keepdim=True),
    "mean over everything": lambda h: h * h.mean((1, 2, 3), keepdim=True),
    "mean over folded positions": lambda h: h * h.flatten(1).mean(1)[:, None, None, None],
    "response norm of ConvNeXt": lambda h: (g := h.norm(dim=(2, 3), keepdim=True)) / g.mean(1, keepdim=True) * h,
    "attention over positions": lambda h: h * h.sum(1, keepdim=True).flatten(2).softmax(-1).view(-1, 1, 8, 8),
}


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_sums_over_channels(form: str) -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1)}
    function = IMAGE_FORMS[form]
    check(lambda s, x: s.b(function(s.a(x))).flatten(2).mean(2), image(), {"a channels": 8}, **layers)


@pytest.mark.parametrize("mix", [lambda h: h.softmax(-1), lambda h: h - h.amax(-1, keepdim=True)])
def test_what_counts_the_width_of_heads_lets_both_go(mix: Callable[[Tensor], Tensor]) -> None:
    def heads(s: nn.Module, x: Tensor) -> Tensor:
        return s.o(mix(s.a(x).unflatten(-1, (4, 3))).flatten(2))

    layers = {"a": nn.Linear(12, 12), "o": nn.Linear(12, 3)}
    check(heads, tokens(), {"a blocks": 4, "a width": 3, "a inputs": 12}, **layers)


def test_a_sum_over_the_width_of_heads() -> None:
    """Heads go with all their width, width goes in all heads; the sum of a head lives while the head does."""

    def heads(s: nn.Module, x: Tensor) -> Tensor:
        return s.o(torch.tanh(s.a(x).unflatten(-1, (4, 3)).mean(-1)))

    layers = {"a": nn.Linear(12, 12), "o": nn.Linear(4, 3)}
    check(heads, tokens(), {"a blocks": 4, "a width": 3, "a inputs": 12}, **layers)


def test_a_gate_is_no_count() -> None:
    """Sums of integers and truth values freeze what they are taken over."""
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 4)}
    assert table(grouped(lambda s, x: s.b(s.a(x) * (s.a(x) > 0).sum(1, keepdim=True)), vector(), **layers)) == {
        "a inputs": 6
    }


@pytest.mark.parametrize(
    "mix",
    [
        lambda h: h.median(-1, keepdim=True)[0],
        lambda h: torch.aminmax(h, dim=-1, keepdim=True)[0],
        lambda h: h.logcumsumexp(-1),
        lambda h: h.cummax(-1)[0],
        lambda h: torch.linalg.vector_norm(h, -2, -1, keepdim=True),
        lambda h: torch.linalg.vector_norm(h, 3, (1, 2), keepdim=True),
    ],
)
def test_what_sees_zeros_freezes_its_dimension_alone(mix: object) -> None:
    """Over positions the same operators let channels pass, except where positions and channels are mixed."""
    assert callable(mix)
    layers = {"a": nn.Linear(12, 8), "b": nn.Linear(8, 4)}
    assert "a channels" not in table(grouped(lambda s, x: s.b(s.a(x) * mix(s.a(x))), tokens(), **layers))
    if "(1, 2)" not in str(mix):
        graph = grouped(lambda s, x: s.b(s.a(x) * mix(s.a(x).mT).mT), tokens(), **layers)
        assert table(graph).get("a channels", 0) in (0, 8)
