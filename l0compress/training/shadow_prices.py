"""Shadow prices: what a unit of each resource is worth where several of them have to be saved at once.

requires: what removing each move loses, and what it saves of each resource.
ensures:  weights under which one sum of savings stands for all of them: the order by loss over that sum is the order of
          the best choice, as far as savings add up.

What to remove under several limits is a knapsack problem with as many constraints. Its linear relaxation removes
exactly those moves whose loss is below the savings at the prices of its dual, whichever resources they save; a resource
that is saved anyway while another is has the price 0. Source: Pirkul, "A heuristic solution procedure for the
multiconstraint zero-one knapsack problem", Naval Research Logistics 34(2), 1987, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor


def shadow_prices(losses: Tensor, savings: Tensor, wanted: Sequence[float]) -> Tensor:
    """float64 ``(resources,)``: the prices, the largest of which is 1; all alike where nothing has a price.

    Args:
        losses: float64 (moves,), not negative: what is lost with each move.
        savings: float64 (resources, moves): what each saves, in the resource's own unit.
        wanted: what has to be saved of each resource, in the same units.

    Two moves, the second of which saves less of the first resource. If that one is scarce alone, the other has no
    price, since it is saved on the way; if both are, the prices are such that savings are worth what is lost:

    >>> losses, savings = torch.tensor([5.0, 2.0]).double(), torch.tensor([[4.0, 1.0], [1.0, 1.0]]).double()
    >>> shadow_prices(losses, savings, [4.5, 0.5]), shadow_prices(losses, savings, [2.5, 1.0])
    (tensor([1., 0.], dtype=torch.float64), tensor([1.0000, 1.0000], dtype=torch.float64))
    """
    ones = torch.ones(len(wanted), dtype=torch.float64)
    if len(wanted) == 1 or not bool(losses.isfinite().all()) or float(losses.max()) <= 0:
        return ones
    # Losses are tiny, and units differ by orders of magnitude: solvers want numbers around one.
    scale = savings.sum(1, keepdim=True)
    need = torch.as_tensor(wanted, dtype=torch.float64).clamp_min(0) / scale[:, 0]
    lost, saved = (losses / losses.max()).numpy(), (savings / scale).numpy()
    found = linprog(lost, A_ub=-saved, b_ub=-need.numpy(), bounds=(0, 1), method="highs")
    if not found.success:  # more is wanted than all moves save as things stand
        return ones / scale[:, 0] * scale.min()
    prices = torch.from_numpy(np.maximum(-found.ineqlin.marginals, 0.0)) / scale[:, 0]
    return prices / prices.max() if float(prices.max()) > 0 else ones / scale[:, 0] * scale.min()
