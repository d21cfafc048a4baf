"""Compress inside your own training loop: gate, budget, optimizer groups, harden and shrink.

    python examples/own_training_loop.py

The lines that l0compress adds are numbered. Everything else is a loop that you may already have.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import l0compress as l0

EPOCHS, BATCH_SIZE = 30, 32


def main(epochs: int = EPOCHS) -> l0.CapturedGraph:
    """Train, compress to 30 % of the multiply-accumulates, and return the small model."""
    torch.manual_seed(0)
    data = l0.load_data("digits")
    (x, y), (x_test, y_test) = ((part.inputs[0].flatten(1), part.targets) for part in (data.train, data.test))
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    fit(model, torch.optim.AdamW(model.parameters(), lr=2e-3), x, y, epochs)

    graph = l0.capture(model, (x[:2],))
    steps = epochs * (len(x) // BATCH_SIZE)
    gated = l0.gate(graph)  # 1
    budget = l0.Budget(gated, {"macs": 0.3}, ramp_steps=steps // 2)  # 2
    optimizer = torch.optim.AdamW(gated.param_groups(lr=2e-3, gate_lr=0.05))  # 3
    fit(gated, optimizer, x, y, epochs, budget)  # 4, 5: budget.penalty() and budget.step(), below
    small = gated.shrink(l0.harden(gated, budget))  # 6

    network = small.module()
    fit(network, torch.optim.AdamW(network.parameters(), lr=2e-3), x, y, epochs)
    for name, tested in (("dense", model), ("small", network)):
        with torch.no_grad():
            accuracy = (tested.eval()(x_test).argmax(1) == y_test).float().mean()
        print(f"{name}: {l0.cost(graph if name == 'dense' else small)}, test accuracy {accuracy:.3f}")
    return small


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    epochs: int,
    budget: l0.Budget | None = None,
) -> None:
    """The user's own loop."""
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(BATCH_SIZE):
            loss = F.cross_entropy(model(x[index]), y[index])
            if budget is not None:
                loss = loss + budget.penalty()  # 4
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if budget is not None:
                budget.step()  # 5


if __name__ == "__main__":
    main()
