"""A training loop as people write it, for tests of what such loops do with gates."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import l0compress as l0
from l0compress.data import Data
from l0compress.gates.attach import GatedNetwork

SHUT, OPEN = -40.0, 40.0


def trained(
    graph: l0.CapturedGraph, data: Data, *, granularity: str = "structured", steps: int = 20, macs: float = 0.5
) -> tuple[GatedNetwork, l0.Budget]:
    """A gated network on the clouds after some steps, and the budget that it was trained under."""
    torch.manual_seed(0)
    gated = l0.gate(graph, granularity=granularity)
    budget = l0.Budget(gated, {"macs": macs}, ramp_steps=steps // 2)
    train_(gated, budget, data, steps=steps)
    return gated, budget


def train_(gated: GatedNetwork, budget: l0.Budget, data: Data, *, steps: int) -> None:
    """The loop itself, on whole batches."""
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-2, gate_lr=0.2, weight_decay=0.01))
    gated.train()
    for _ in range(steps):
        loss = F.cross_entropy(gated(data.train.inputs[0]), data.train.targets) + budget.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        budget.step()


def decided_(gated: GatedNetwork, plan: l0.KeepPlan) -> GatedNetwork:
    """``gated`` in evaluation mode, with what ``plan`` drops shut and what it keeps open, though it may be shut."""
    kept = {None: plan.keep, **plan.masks}
    with torch.no_grad():
        for name, keep in kept.items():
            gates = gated.gates if name is None else gated.weight_gates[name]
            gates.log_alpha[keep & (gates.median() == 0)] = OPEN
            gates.log_alpha[~keep] = SHUT
    return gated.eval()
