"""Torch-Pruning: channels cut from the module by one of its scores, then the common trainer.

Its ratio of channels is turned until the budget is met; its uniform and its global ranking both are tried, and the
better one in validation is trained. What it has no notion of stays: inputs, and the last layer's outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import torch
from plain_training import task_loss
from quality.cells import Cell
from quality.problem import Problem
from torch import Tensor, nn

from l0compress.data import Batch, Split
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.groups.cost import cost
from l0compress.training.targets import Target
from rivals.made import Made, NotCut, fitted, refusals_of
from rivals.training import trained

Gradients = Mapping[str, Tensor]
MAGNITUDE, TAYLOR, HESSIAN = "magnitude", "taylor", "hessian"


def make(cell: Cell, problem: Problem) -> Made:
    """The network that Torch-Pruning makes of the problem's module, trained."""
    module = problem.module
    if module is None:
        raise NotCut("this network is not made of layers that Torch-Pruning knows")
    score = cell.method.removeprefix("torch-pruning-")
    gradients = gradients_for(score, module, problem.scoring(cell.seed))
    example = next(iter(problem.data.train.batches(2)))
    target = Target.of(problem.target(cell.unit, cell.budget)).on(cost(problem.graph).get(cell.unit))

    def cut(ratio: float, *, is_global: bool) -> CapturedGraph:
        small = pruned(module, example, score, ratio, is_global=is_global, gradients=gradients)
        return capture(small, example.args, example.kwargs)

    found = [fitted(partial(cut, is_global=choice), cell.unit, target.limit)[1] for choice in (False, True)]
    return trained(found, cell, problem)


def gradients_for(score: str, module: nn.Module, samples: Split) -> Gradients:
    """What a score wants beside the weights, by parameter: nothing, the gradient of the loss, or its mean square.

    Torch-Pruning 1.6.1 means to collect the squares itself (``GroupHessianImportance.accumulate_grad``), but keeps
    those of the last sample alone: it looks parameters up by name that it keeps by themselves. So they are collected
    here.
    """
    if score == MAGNITUDE:
        return {}
    batches = samples.batches(len(samples) if score == TAYLOR else 1)
    totals: dict[str, Tensor] = {}
    for batch in batches:
        module.zero_grad()
        _loss(module, batch).backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                value = parameter.grad if score == TAYLOR else parameter.grad.square() / len(samples)
                totals[name] = totals.get(name, 0) + value
    module.zero_grad()
    return totals


def _loss(module: nn.Module, batch: Batch) -> Tensor:
    if batch.targets is None:
        raise TypeError("the samples that scores are computed on have labels")
    return task_loss(batch.run(module), batch.targets)


def pruned(
    module: nn.Module, example: Batch, score: str, ratio: float, *, is_global: bool, gradients: Gradients
) -> nn.Module:
    """A copy of the module without a share of its channels, by Torch-Pruning's group scores.

    Raises:
        NotCut: it cannot cut the module; the message is its own.
    """
    import torch_pruning

    importances = {
        MAGNITUDE: torch_pruning.importance.GroupMagnitudeImportance,
        TAYLOR: torch_pruning.importance.GroupTaylorImportance,
        HESSIAN: torch_pruning.importance.GroupHessianImportance,
    }
    small = copy.deepcopy(module)
    for name, parameter in small.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    with refusals_of("Torch-Pruning"):
        pruner = torch_pruning.pruner.BasePruner(
            small,
            example.args,
            importance=importances[score](),
            global_pruning=is_global,
            pruning_ratio=ratio,
            ignored_layers=[last_linear(small)],
        )
        pruner.step()
        small.zero_grad()
        with torch.no_grad():
            example.run(small)
    return small


def last_linear(module: nn.Module) -> nn.Module:
    """The layer that makes the outputs, which Torch-Pruning has to be told not to cut."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
