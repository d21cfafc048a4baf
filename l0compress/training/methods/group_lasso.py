"""Group lasso: the norm of everything that a move removes is held down, so that whole groups shrink to nothing.

``sum over moves g of sqrt(p_g) ||w_g||_2 <= share of what it is at first``, with the ``p_g`` parameters ``w_g`` that
the move removes; its slope by a group does not vanish where the group is small. Source: Yuan and Lin, "Model selection
and estimation in regression with grouped variables", 2006, equation 2.1, on filters and channels as in Wen et al.,
"Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016, section 3.1. Moves go by
``||w_g||_2 / sqrt(p_g)``, in which the threshold of the proximal step is the same for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l0compress.graph.groups import Groups
from l0compress.training.methods.factors import factors_of
from l0compress.training.methods.magnitude import removed_sum
from l0compress.training.methods.norms import NormPressure
from l0compress.training.methods.pressure import MOVES, Pressed
from l0compress.training.methods.trained import TrainedMoves

# Where a group is nothing its norm has no slope.
_EPSILON = 1e-12


def group_norms(groups: Groups, weights: dict[str, Tensor]) -> Tensor:
    """``(num_moves,)``: the L2 norm of all parameters that each move removes; differentiable in ``weights``.

    >>> from l0compress.graph.capture import capture
    >>> from l0compress.graph.groups import find_groups
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> groups = find_groups(capture(net, (torch.zeros(2, 1),)))
    >>> weights = {"0.weight": torch.tensor([[3.0], [0.0]]), "1.weight": torch.tensor([[4.0, 2.0]])}
    >>> group_norms(groups, weights)
    tensor([5., 2.])
    """
    return (removed_sum(groups, torch.square, weights) + _EPSILON).sqrt()


class GroupLassoPressure(NormPressure):
    """Holds down the sum of the norms of groups, each times the root of its size."""

    def __init__(self, pressed: Pressed) -> None:
        factors_of(pressed.network).value.requires_grad_(False)
        self._root_sizes = (
            removed_sum(pressed.limits.groups, torch.ones_like).detach().sqrt().to(pressed.problem.device)
        )
        super().__init__(pressed)

    def norm(self) -> Tensor:
        return (self._root_sizes * self._norms()).sum()

    def scores(self) -> dict[str, Tensor]:
        return {MOVES: (self._norms().detach() / self._root_sizes).cpu()}

    def _norms(self) -> Tensor:
        return group_norms(self.pressed.limits.groups, dict(self.network.weights()))


class GroupLasso(TrainedMoves):
    """Shrink whole groups, then remove the smallest."""

    name = "group-lasso"
    pressure = GroupLassoPressure
