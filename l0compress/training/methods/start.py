"""Where gates start that know an order: near the budget, open above the border and shut below it."""

from __future__ import annotations

import torch
from torch import Tensor

CENTRE, SPREAD, STEEPNESS = 0.3, 3.3, 2.0


def ordered_log_alpha(scores: Tensor, num_kept: int) -> Tensor:
    """float32, of the shape of ``scores``: log_alpha in their order, so that about ``num_kept`` gates begin open.

    A gate whose score is far above the border between the kept and the others begins almost surely open, one far below
    it almost surely shut; only about the border does the noise of sampling have something to decide. Far is meant in
    standard deviations of the logarithms.

    >>> ordered_log_alpha(torch.tensor([1e-6, 1e-3, 1e-2, 1.0]), 2)
    tensor([-2.9898, -1.1243,  1.7243,  3.5355])
    """
    positive = scores[scores.isfinite() & (scores > 0)].double()
    if len(positive) == 0:
        return torch.full_like(scores, CENTRE, dtype=torch.float32)
    logs = scores.double().clamp(float(positive.min()), float(positive.max())).log()
    ranked = logs.sort().values
    cut = min(max(len(ranked) - num_kept, 1), len(ranked) - 1) if len(ranked) > 1 else 0
    border = (ranked[max(cut - 1, 0)] + ranked[cut]) / 2
    spread = logs.std(correction=0).clamp_min(1e-12)
    return (CENTRE + SPREAD * torch.tanh(STEEPNESS * (logs - border) / spread)).float()


def on_their_sides(log_alpha: Tensor, keep: Tensor) -> Tensor:
    """``log_alpha`` with those at the border that a decision, bool of the same shape, has on its other side.

    >>> on_their_sides(torch.tensor([-2.0, -1.0, 2.0, 3.0]), torch.tensor([False, True, False, True]))
    tensor([-2.0000,  0.3000,  0.3000,  3.0000])
    """
    return torch.where(keep, log_alpha.clamp(min=CENTRE), log_alpha.clamp(max=CENTRE))
