"""Fixed penalties that miss their purpose: a budget is met, but a penalty may remove nothing, or all that may go."""

from __future__ import annotations

import torch

from l0compress.gates.reach import smallest_keep
from l0compress.graph.cut.plan import KeepPlan
from l0compress.training.goals import Criterion
from l0compress.training.problem import Problem


def extreme_of(penalty: Criterion, plan: KeepPlan, problem: Problem) -> str | None:
    """What to say of a plan that a fixed penalty made, if it removes nothing or all that may go; None for others."""
    masks = tuple(plan.masks.values())
    strength = penalty.multiplier(len(problem.data.train))
    what = f"The penalty {penalty} ({strength:.3g} of loss for each parameter) removes"
    if bool(plan.keep.all()) and all(bool(mask.all()) for mask in masks):
        steps = problem.gated_steps
        return f"{what} nothing: no gate is shut after {steps} steps. Give more epochs, or a larger penalty."
    least = int(smallest_keep(plan.groups, torch.zeros(plan.groups.num_moves)).sum())
    if int(plan.keep.sum()) <= least and all(int(mask.sum()) <= 1 for mask in masks):
        return f"{what} all that may go. Give a smaller penalty, or more samples, by which aic and bic are smaller."
    return None
