"""Optimizers and schedulers as users write them."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from l0compress.training.optim import cosine


class Counting(torch.optim.Optimizer):
    """SGD whose steps get smaller: it counts steps as integers, of each parameter and of each group."""

    def __init__(self, params: Any, lr: float, decay: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "steps": 0, "pair": (1, 2)})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["count"] = state.get("count", 0) + 1
                    share = (state["count"] + group["steps"]) ** -group["decay"]
                    parameter.sub_(parameter.grad, alpha=group["lr"] * share)


def fused_adamw(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def one_cycle(optimizer: torch.optim.Optimizer, num_steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, max_lr=0.01, total_steps=num_steps)


def the_cosine(optimizer: torch.optim.Optimizer, num_steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: cosine(step / num_steps))


def no_optimizer(groups: Any, lr: float) -> str:
    del groups, lr
    return "adamw"


def half_of_them(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups[:1], lr=lr)


def broken(groups: Any, lr: float) -> torch.optim.Optimizer:
    raise ValueError(f"{len(groups)} groups at {lr}")
