"""The tensors of a module beside those of the graph that was captured from it, and what a plan leaves of them."""

from __future__ import annotations

import fnmatch
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from l0compress.errors import PlanError
from l0compress.graph import CapturedGraph, KeepPlan, unshrink_state
from l0compress.graph.cut.plan import cut, group_key
from l0compress.graph.nodes.describe import counted

_MOST_NAMED = 3


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names, also those that are not saved."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def check_same_model(module: nn.Module, plan: KeepPlan) -> None:
    """Check that ``module`` holds, in their dense shapes, the tensors that the plan cuts.

    Raises:
        PlanError: it does not.
    """
    own, kind = tensors_of(module), type(module).__name__
    keeps = plan.parameter_keeps()
    cut_names = [name for name in keeps if any(keep is not None for keep in keeps[name])]
    computed = [name for name in cut_names if name not in own]
    if computed:
        more = f" and {counted(len(computed) - _MOST_NAMED, 'other')}" if len(computed) > _MOST_NAMED else ""
        raise PlanError(
            f"the plan cuts {', '.join(map(repr, computed[:_MOST_NAMED]))}{more}, which {kind} does not hold as a "
            "parameter or buffer.",
            fix=(
                "Pass the module that was captured, without a wrapper; remove parametrisations such as weight_norm "
                "before capture, and register constants of a layer's width as buffers."
            ),
        )
    for name in cut_names:
        found, dense = tuple(own[name].shape), tuple(plan.groups.labelled.parameters[name].shape)
        if found != dense:
            raise PlanError(
                f"the plan was made for a {kind} whose {name!r} has shape {dense}, and here it has {found}.",
                fix="Pass the module in the size that was captured; one that is shrunk already needs nothing more.",
            )


def dense_weights(module: nn.Module, plan: KeepPlan, small: CapturedGraph | None) -> CapturedGraph:
    """The dense graph with the weights that are to be cut: those of ``small`` in their places, or the module's own."""
    graph = plan.groups.graph
    if small is not None:
        return graph.with_state(unshrink_state(plan, small.state()))
    own = {name: tensor.detach().cpu() for name, tensor in tensors_of(module).items()}
    return graph.with_state({**graph.state(), **own})


def following(plan: KeepPlan, whole: tuple[str, ...]) -> KeepPlan:
    """The part of ``plan`` that a module is to follow by its shapes: ``whole`` groups, and columns of inputs, stay.

    ``forward`` hands a layer its whole input, so nothing can be left out where only one layer selects from it.

    Args:
        whole: globs of groups.

    Raises:
        PlanError: a glob stands for no group.
    """
    by_name = {group_key(group.name, group.kind): group for group in plan.groups.groups}
    for glob in whole:
        if not fnmatch.filter(by_name, glob):
            raise PlanError(f"there is no group {glob!r}.", fix=f"The groups are {', '.join(by_name)}.")
    keep = plan.keep.clone()
    for name, group in by_name.items():
        if group.kind == "inputs" or any(fnmatch.fnmatchcase(name, glob) for glob in whole):
            keep[list(group.moves)] = True
    return replace(plan, keep=plan.groups.close(keep), unfit={})


def alone(plan: KeepPlan) -> dict[str, KeepPlan]:
    """What ``plan`` drops of each group, as a plan of its own; groups that cannot go alone are left out."""
    plans: dict[str, KeepPlan] = {}
    for group in plan.groups.groups:
        keep = torch.ones_like(plan.keep)
        keep[list(group.moves)] = plan.keep[list(group.moves)]
        if not bool(keep.all()):
            with suppress(PlanError):
                plans[group_key(group.name, group.kind)] = KeepPlan.from_keep(plan.groups, keep)
    return plans


def cut_weights(dense: CapturedGraph, plan: KeepPlan, followed: KeepPlan) -> dict[str, Tensor]:
    """By name, the tensors of the small module: cut as ``followed`` says, zero where only ``plan`` drops."""
    wanted, real, state = plan.parameter_keeps(), followed.parameter_keeps(), dense.state()
    return {name: cut(_silenced(state[name], plan, name, wanted[name]), keeps) for name, keeps in real.items()}


def _silenced(tensor: Tensor, plan: KeepPlan, name: str, keeps: tuple[Tensor | None, ...]) -> Tensor:
    mask = plan.masks.get(name)
    tensor = tensor.clone() if mask is None else tensor.masked_fill(~mask, 0.0)
    for dim, keep in enumerate(keeps):
        if keep is not None:
            dropped = torch.ones(tensor.shape[dim], dtype=torch.bool)
            dropped[keep] = False
            tensor.index_fill_(dim, dropped.nonzero().flatten(), 0)
    return tensor
