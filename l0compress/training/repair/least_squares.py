"""Ridge least squares from sums: how far the weights of a layer should move, and whether that helps on other samples.

Everything is in terms of the *step* from the weights that a layer has: the residual is what the layer misses with
them, and the penalty is on the step. What is nearly solved already so stays exact to the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l0compress.devices import widest_float

MOST_CANCELLATION = 10.0
# Numbers of the matrices that are factored at a time, where every output has unknowns of its own.
_FACTORED = 2**21


@dataclass
class Sums:
    """What least squares needs to know of any number of rows, summed in float64; one problem a group.

    Attributes:
        gram: ``(groups, unknowns, unknowns)``, inputs times inputs.
        moment: ``(groups, unknowns, outputs)``, inputs times residuals.
        squares: ``(groups, outputs)``, squared residuals.
    """

    gram: Tensor | float = 0.0
    moment: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add_(self, inputs: Tensor, residuals: Tensor, *, gram: bool = True) -> None:
        """Count rows in, ``(groups, rows, unknowns)`` and ``(groups, rows, outputs)``.

        Args:
            gram: False leaves the inputs' own products out, where another problem on the same rows has them already.
        """
        wide = widest_float(inputs.device)
        if gram:
            self.gram = self.gram + (inputs.mT @ inputs).to(wide)
        self.moment = self.moment + (inputs.mT @ residuals).to(wide)
        self.squares = self.squares + residuals.to(wide).square().sum(1)

    def error(self, step: Tensor) -> Tensor:
        """``(groups, outputs)``: the squared error that is left after a step."""
        change = torch.as_tensor(self.gram) @ step - 2 * torch.as_tensor(self.moment)
        return self.squares + (step * change).sum(1)


def solve(sums: Sums, penalty: float, free: int = 0, support: Tensor | None = None) -> Tensor:
    """``(groups, unknowns, outputs)``: the step that minimises the squared error plus a penalty on its own square.

    Args:
        penalty: in units of the mean square of the penalised inputs.
        free: how many unknowns at the end are not penalised (the bias).
        support: bool, of the step's shape: what may differ from zero; all of it where None.

    Source: Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970, about a point
    other than zero. With a support: the weights of a pruned row in closed form, as in Frantar and Alistarh, "Optimal
    Brain Compression", NeurIPS 2022, section 4.

    >>> x, y = torch.randn(1, 50, 3).double(), torch.randn(1, 50, 2).double()
    >>> sums = Sums()
    >>> sums.add_(x, y)
    >>> torch.allclose(solve(sums, 1e-12), torch.linalg.lstsq(x, y).solution)
    True
    """
    gram = torch.as_tensor(sums.gram)
    weights = torch.ones(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights[len(weights) - free :] = 0
    scale = (gram.diagonal(dim1=1, dim2=2) * weights).sum(1) / weights.sum().clamp_min(1)
    # What is never on has no scale of its own; any positive number keeps its weights where they are.
    scale = torch.where(scale > 0, scale, 1.0)
    shifted = gram + torch.diag_embed(penalty * scale.unsqueeze(1) * weights)
    if support is None:
        return _solved(shifted, torch.as_tensor(sums.moment))
    problems = zip(shifted, torch.as_tensor(sums.moment), support, strict=True)
    return torch.stack([_solved_on(support, matrix, moment) for matrix, moment, support in problems])


def work_of(support: Tensor) -> float:
    """Multiply-accumulates that :func:`solve` takes for a support, about.

    >>> work_of(torch.ones(1, 30, 7, dtype=torch.bool))  # seven factorisations of 30 by 30
    63000.0
    """
    return float((support.sum(1).double() ** 3).sum() / 3)


def _solved(matrices: Tensor, moments: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrices)
    step = torch.cholesky_solve(moments, factor)
    # A matrix that is not positive definite at this penalty is left to a larger one.
    return torch.where((failed == 0).view(-1, 1, 1) & step.isfinite(), step, 0.0)


def _solved_on(support: Tensor, matrix: Tensor, moment: Tensor) -> Tensor:
    """``(unknowns, outputs)``: for each output the problem of its own support, some outputs at a time."""
    counts = support.sum(0)
    # Outputs with about as many unknowns go together, each filled up with others that are then held at zero.
    by_count = counts.argsort(descending=True, stable=True)
    order = (~support).mT.to(torch.uint8).argsort(dim=1, stable=True)
    step, start = torch.zeros_like(moment), 0
    while start < len(by_count):
        width = int(counts[by_count[start]])
        chosen = by_count[start : start + max(1, _FACTORED // max(width, 1) ** 2)]
        places = order[chosen, :width]
        real = torch.arange(width, device=places.device) < counts[chosen].unsqueeze(1)
        own = matrix[places.unsqueeze(2), places.unsqueeze(1)]
        own = torch.where(real.unsqueeze(2) & real.unsqueeze(1), own, torch.eye(width, dtype=own.dtype).to(own.device))
        wanted = torch.where(real, moment[places, chosen.unsqueeze(1)], 0.0)
        step[places, chosen.unsqueeze(1)] = _solved(own, wanted.unsqueeze(2)).squeeze(2)
        start += len(chosen)
    return step


def cancellation(gram: Tensor, step: Tensor) -> float:
    """How much larger the terms of a step's products are than their sums, over what independent terms would have.

    Terms of random signs, as many as there are unknowns, have 1. Where it is large, the sums are small differences of
    large numbers, which do not survive a rounding of inputs or weights.

    >>> gram = torch.tensor([[[1.0, 1.0], [1.0, 1.0001]]])  # two inputs that hardly differ
    >>> [round(cancellation(gram, torch.tensor([[[1.0], [other]]])), 1) for other in (1.0, -1.0)]
    [0.7, 141.4]
    """
    sizes = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    terms = (step.abs() * sizes.unsqueeze(2)).sum(1).square().sum()
    sums = (step * (gram @ step)).sum().clamp_min(0)
    return float((terms / sums / step.shape[1]).sqrt()) if float(terms) else 0.0


@dataclass(frozen=True, eq=False)
class Solution:
    """A step, and the squared errors before and after it on samples that it was not solved on, each of all outputs.

    Attributes:
        penalty: position of the penalty in the list that it was chosen from.
    """

    step: Tensor
    before: float
    after: float
    penalty: int


def best_step(
    train: Sums,
    held_out: Sums,
    penalties: Sequence[float],
    *,
    free: int = 0,
    start: int | None = None,
    support: Tensor | None = None,
) -> Solution:
    """The step with the penalty that is best on other samples, whether or not it is better than staying.

    A step whose terms cancel each other counts as infinitely bad, however well it does in exact arithmetic.

    From penalty ``start`` (the middle one), neighbours are tried as long as they are better: the error has one valley.
    """
    before = float(torch.as_tensor(held_out.squares).sum())
    tried: dict[int, Solution] = {}

    def attempt(position: int) -> Solution:
        if position not in tried:
            step = solve(train, penalties[position], free, support)
            sound = cancellation(torch.as_tensor(train.gram), step) <= MOST_CANCELLATION
            after = float(held_out.error(step).sum()) if sound else math.inf
            tried[position] = Solution(step, before, after, position)
        return tried[position]

    best = attempt(len(penalties) // 2 if start is None else start)
    for way in (-1, 1):
        while 0 <= best.penalty + way < len(penalties) and (found := attempt(best.penalty + way)).after < best.after:
            best = found
    return best
