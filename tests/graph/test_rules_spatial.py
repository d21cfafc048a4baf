"""Patches, sampling and unpooling work inside a channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import grouped, image, reasons, table, tokens, vector
from rulechecks import check
from torch import Tensor, nn

Form = Callable[[Tensor], Tensor]


def unpooled(h: Tensor) -> Tensor:
    return F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2)


def sampled(h: Tensor) -> Tensor:
    grid = torch.linspace(-1, 1, 5, dtype=h.dtype).view(1, 5, 1, 1).expand(h.shape[0], 5, 5, 2)
    return F.grid_sample(h, grid, align_corners=False)


# Between two 1x1 convolutions of eight channels: the form, the width that it leaves, whether ONNX has it.
FORMS: dict[str, tuple[Form, int, bool]] = {
    "patches": (lambda h: F.unfold(h, 2, stride=2).unflatten(2, (4, 4)), 32, True),
    "patches and back": (lambda h: F.fold(F.unfold(h, 3, padding=1), (8, 8), 3, padding=1), 8, True),
    "unpooled": (unpooled, 8, False),
    "sampled": (sampled, 8, True),
    "pixels shuffled": (lambda h: F.pixel_shuffle(h, 2), 2, True),
    "pixels unshuffled": (lambda h: F.pixel_unshuffle(h, 2), 32, True),
    "gated": (lambda h: F.glu(h, 1), 4, True),
    "dropped channels": (lambda h: F.dropout2d(h, 0.5, False), 8, True),
    "pooled to any size": (lambda h: F.adaptive_max_pool2d(h, 3) + F.adaptive_avg_pool2d(h, 3), 8, False),
    "softmax over positions": (lambda h: h.flatten(2).softmax(2).view(h.shape), 8, True),
}
MOVES = {"pixels shuffled": {"a blocks": 2}, "gated": {"a channels": 4}}


@pytest.mark.mostly_slow
@pytest.mark.parametrize("form", FORMS)
def test_between_convolutions(tmp_path: Path, form: str) -> None:
    function, width, exports = FORMS[form]
    check(
        lambda s, x: s.b(function(s.a(x))).flatten(2).mean(2),
        image(),
        MOVES.get(form, {"a channels": 8}),
        onnx=tmp_path if exports else None,
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(width, 6, 1),
    )


def test_folding_alone_unites_the_positions_of_a_patch() -> None:
    def folded(s: nn.Module, x: Tensor) -> Tensor:
        return s.b(F.fold(s.a(x).mT, (4, 4), 2, stride=2)).flatten(2).mean(2)

    layers = {"a": nn.Linear(12, 12), "b": nn.Conv2d(3, 4, 1)}
    check(folded, tokens(12, 4), {"a channels": 3, "a inputs": 12}, **layers)


def test_positions_known_at_run_time_stay() -> None:
    def warped(s: nn.Module, x: Tensor) -> Tensor:
        return s.b(F.grid_sample(s.a(x), torch.tanh(s.g(x)).permute(0, 2, 3, 1), align_corners=True))

    layers = {"a": nn.Conv2d(3, 8, 1), "g": nn.Conv2d(3, 2, 1), "b": nn.Conv2d(8, 4, 1)}
    groups = grouped(lambda s, x: warped(s, x).flatten(2).mean(2), image(), **layers)
    assert table(groups) == {"a channels": 8}
    assert (0, "grid_sampler", "its values are positions") in reasons(groups, "g.weight")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_rows(mode: str) -> None:
    layers = {"e": nn.EmbeddingBag(7, 8, mode=mode), "b": nn.Linear(8, 3)}
    check(lambda s, x: s.b(F.gelu(s.e((x * 3).long().clamp(0, 6)))), vector(), {"e channels": 8}, **layers)


def test_gated_along_the_last_dimension(tmp_path: Path) -> None:
    layers = {"a": nn.Linear(12, 10), "b": nn.Linear(5, 3)}
    check(lambda s, x: s.b(F.glu(s.a(x))), tokens(), {"a channels": 5, "a inputs": 12}, onnx=tmp_path, **layers)


def test_gated_across_heads() -> None:
    """Halves of the heads meet, so heads go in pairs."""
    layers = {"a": nn.Linear(12, 12), "b": nn.Linear(6, 3)}
    check(
        lambda s, x: s.b(F.glu(s.a(x).unflatten(-1, (4, 3)), 2).flatten(2)),
        tokens(),
        {"a blocks": 2, "a width": 3, "a inputs": 12},
        **layers,
    )
