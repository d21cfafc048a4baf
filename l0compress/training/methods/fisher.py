"""Fisher information of the gates: what the model's own predictions lose with each move, over what the move costs.

All gates are at 1. To second order, what closing a gate does to the predictions is half the curvature of their
distance from the dense model's along that gate; over the cost that closing it saves, it says which to close first.
Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3.1, and Kwon et al.,
"A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, section 4.1; here without labels, by
:func:`~l0compress.training.curvature.probe`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from l0compress.data.batches import Batch
from l0compress.gates.attach import attach
from l0compress.graph.groups import Groups
from l0compress.graph.groups.resource import Resource
from l0compress.training.curvature import probe
from l0compress.training.limits import Limits
from l0compress.training.losses import Objective
from l0compress.training.methods.factors import Factors
from l0compress.training.methods.one_shot import OneShot
from l0compress.training.problem import Problem
from l0compress.training.shadow_prices import shadow_prices


def fisher_information(
    groups: Groups, batches: Sequence[Batch], objective: Objective, *, device: str = "cpu", seed: int = 0
) -> Tensor:
    """float64 ``(num_moves,)``: the mean over samples of the curvature along each gate.

    Each batch is one probe, so that many small ones say more than few large ones. Samples need no labels.

    >>> from l0compress.graph.capture import capture
    >>> from l0compress.graph.groups import find_groups
    >>> from torch import nn
    >>> from l0compress.training.losses import objective_for
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.eye(2)), net[1].weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> groups = find_groups(capture(net, (torch.zeros(2, 2),)))
    >>> (hidden,) = [group for group in groups.groups if group.kind == "channels"]
    >>> information = fisher_information(groups, [Batch((x,), {})], objective_for("mse", None, x[:, :1]))
    >>> information[list(hidden.moves)].round().tolist()  # twice the squares of 3 * 1 and 1 * 2
    [18.0, 8.0]
    """
    gates = Factors(groups.num_moves)
    gated = attach(groups, gates).eval().to(device)
    for weight in gated.weights().values():
        weight.requires_grad_(False)
    draws = torch.Generator().manual_seed(seed)
    total, count = torch.zeros(groups.num_moves, dtype=torch.float64), 0
    for batch in batches:
        batch = batch.to(device)
        scalar = probe(batch.run(gated), batch.targets, objective, draws)
        (gradient,) = torch.autograd.grad(scalar, gates.value)
        total += gradient.cpu().double().square()
        count += len(batch)
    return total / max(count, 1)


def marginal_cost(resource: Resource) -> Tensor:
    """float64 ``(num_moves,)``: what each move takes off the dense cost by itself, at least a thousandth of the mean.

    >>> from l0compress.graph.capture import capture
    >>> from l0compress.graph.groups import find_groups
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> groups = find_groups(capture(net, (torch.zeros(2, 4),)))
    >>> from l0compress.graph.groups.resource import Counted
    >>> marginal_cost(Counted(groups, "params"))[list(groups.groups[0].moves)].tolist()  # 4 weights, a bias, 2 weights
    [7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0]
    """
    open_ = torch.ones(resource.groups.num_moves, dtype=torch.float64, requires_grad=True)
    (marginal,) = torch.autograd.grad(resource.expected(open_), open_)
    return marginal.clamp_min(1e-3 * float(marginal.mean()))


def joint_marginal_cost(limits: Limits, losses: Tensor) -> Tensor:
    """float64 ``(num_moves,)``: what each move takes off the cost by itself, all limited resources in one number.

    The sum of the marginal costs at the prices that the limits give to the resources, see
    :func:`~l0compress.training.shadow_prices.shadow_prices`; of a single resource it is that resource's own.

    Args:
        losses: float64 (num_moves,): what is lost with each move.
    """
    costs = torch.stack([marginal_cost(bound.resource) for bound in limits.bounds])
    wanted = [now - bound.most for now, bound in zip(limits.dense(), limits.bounds, strict=True)]
    return (shadow_prices(losses, costs, wanted).unsqueeze(1) * costs).sum(0)


class Fisher(OneShot):
    """Decide by the information of each move over the cost that its removal saves."""

    name = "fisher"

    def score(self, limits: Limits, problem: Problem, samples: tuple[Batch, ...]) -> Tensor:
        settings, groups = problem.settings, limits.groups
        information = fisher_information(groups, samples, problem.objective, device=settings.device, seed=settings.seed)
        return information / joint_marginal_cost(limits, information)
