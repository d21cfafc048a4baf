"""Elementwise operators in all their spellings let channels pass; what looks at a whole dimension does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import grouped, image, table, tokens, vector
from rulechecks import check
from torch import Tensor, nn

Form = Callable[[Tensor, Tensor], Tensor]

# Of two activations of the same layout.
FORMS: dict[str, Form] = {
    "interpolated": lambda h, g: torch.lerp(h, g, 0.3),
    "interpolated by a tensor": lambda h, g: torch.lerp(h, g, torch.sigmoid(h)),
    "added product": lambda h, g: torch.addcmul(h, g, h, value=0.5),
    "clamped by tensors": lambda h, g: torch.clamp(h, min=g - 1, max=g + 1),
    "clipped": lambda h, g: torch.clip(h, -1, 1) + g,
    "step": lambda h, g: h * torch.heaviside(g, torch.tensor(0.5, dtype=h.dtype)),
    "numbers for all": lambda h, g: torch.nan_to_num(h / (g.abs() + 1)),
    "where": lambda h, g: torch.where(h > 0, g, 0.5),
    "where the other way": lambda h, g: torch.where(torch.greater(h, g), 1.0, h),
    "bins": lambda h, g: torch.bucketize(h, torch.tensor([-0.5, 0.1, 0.7], dtype=h.dtype)).to(h.dtype) + g,
    "long names": lambda h, g: torch.subtract(torch.multiply(h, g), torch.divide(h, 1 + g * g)),
    "copied": lambda h, g: torch.empty_like(h).copy_(g) + h,
    "swish by hand": lambda h, g: h * torch.sigmoid(g) + torch.logaddexp(h, g),
    "like another": lambda h, g: h.unsqueeze(1).view_as(g) + h.mT.mT.reshape_as(g),
}
# ONNX has no operator for these, or the converter does not know it.
ONLY_HERE = {"step", "bins", "swish by hand"}


@pytest.mark.mostly_slow
@pytest.mark.parametrize("form", FORMS)
def test_both_lose_the_same_channels(tmp_path: Path, form: str) -> None:
    layers = {"a": nn.Linear(6, 8), "c": nn.Linear(6, 8), "b": nn.Linear(8, 4)}
    check(
        lambda s, x: s.b(FORMS[form](s.a(x), s.c(x))),
        vector(),
        {"a channels": 8, "a inputs": 6, "c inputs": 6},
        onnx=None if form in ONLY_HERE else tmp_path,
        **layers,
    )


@pytest.mark.parametrize(
    "mix",
    [
        lambda h: torch.cdist(h, h) @ h,
        lambda h: F.cosine_similarity(h, h[:, :1], dim=-1).unsqueeze(-1) * h,
        lambda h: torch.kron(h[0], h.new_ones(1, 1)).unsqueeze(0) + h,
        lambda h: torch.as_strided(h, (h.shape[0], 5, 8), (40, 8, 1)) * 2,
        lambda h: torch.fft.rfft(h).abs()[..., :1] * h,
        lambda h: h * torch.view_as_real(torch.complex(h, h)).sum(-1),
        lambda h: F.local_response_norm(h.mT, 3).mT,
        lambda h: h * F.softmin(h, -1).cumsum(-1),
        lambda h: h.rot90(1, (1, 2)).rot90(3, (1, 2)) + h.sort(-1)[0],
        lambda h: h.index_select(2, h.abs().sum((0, 1)).argsort()),
    ],
)
def test_what_looks_at_a_whole_dimension_keeps_it(mix: Callable[[Tensor], Tensor]) -> None:
    layers = {"a": nn.Linear(12, 8), "b": nn.Linear(8, 4)}
    assert table(grouped(lambda s, x: s.b(mix(s.a(x))), tokens(), **layers)) == {"a inputs": 12}


def test_windows_that_are_shifted() -> None:
    """Swin's rolled windows: positions roll and fold, channels pass."""

    def windows(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x).permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
        h = h.unflatten(1, (2, 4)).unflatten(3, (2, 4)).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8)
        return s.b(F.gelu(h)).unflatten(0, (-1, 4)).flatten(1, 2).mean(1)

    check(windows, image(), {"a channels": 8}, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 4))
