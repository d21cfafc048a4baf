"""State dicts: all that it takes to go on, bit for bit, as tensors and plain values by name.

A name is a path with dots. Tensors are on the CPU; everything else can be written as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from l0compress.training.held import divided_like, is_divided
from l0compress.training.own_optim import HIGHEST, load_plain_state_, plain_state

StateDict: TypeAlias = dict[str, Any]
# The stages of a run that have a state: what ``state_dict["stage"]`` says.
SEARCH, GATES, SPARSIFY, FINETUNE = "search", "gates", "sparsify", "finetune"
# The member of a family that a state is of, by its target.
MEMBER = "member"
_SCALER, _OWN = "scaler", "own_optimizer"


class Stateful(Protocol):
    """What has a state, as torch's modules and optimizers do."""

    def state_dict(self) -> StateDict: ...


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under a path, on the CPU; those that are divided over processes stay where they are."""
    return {
        f"{prefix}.{name}": tensor.detach() if is_divided(tensor) else tensor.detach().cpu()
        for name, tensor in tensors.items()
    }


def under(prefix: str, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under a path, without it.

    >>> under("best", {"best": 1, "best.a": torch.zeros(1), "bestial.b": torch.ones(1)})
    {'a': tensor([0.])}
    """
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in state_dict.items() if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """An optimizer's state, as ``parameter name.key``; the schedule sets rates anew, so they are not in it.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    >>> weight.sum().backward(); optimizer.step()
    >>> optimizer_tensors(optimizer, {"0.weight": weight})
    {'0.weight.momentum_buffer': tensor([1., 1.])}
    """
    return {
        f"{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Give a fresh optimizer the state that :func:`optimizer_tensors` returned."""
    for path, value in tensors.items():
        name, _, key = path.rpartition(".")
        parameter = parameters[name]
        state = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else None
        # The strides of a parameter decide which kernel runs, and its state has the same ones.
        loaded = (
            value.clone().to(parameter.device) if state is None else state.detach().copy_(divided_like(value, state))
        )
        optimizer.state[parameter][key] = loaded.requires_grad_(False)


def own_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> StateDict:
    """What is no tensor of an optimizer of the user's own; nothing of those that are chosen by name."""
    return {_OWN: plain_state(optimizer, parameters)} if _is_own(optimizer) else {}


def load_own_state_(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state_dict: Mapping[str, Any]
) -> None:
    """Give a fresh optimizer what :func:`own_state` returned."""
    if _OWN in state_dict and _is_own(optimizer):
        load_plain_state_(optimizer, parameters, state_dict[_OWN])


def _is_own(optimizer: torch.optim.Optimizer) -> bool:
    return any(HIGHEST in group for group in optimizer.param_groups)


def scaler_state(scaler: torch.amp.GradScaler) -> StateDict:
    """The state of what scales losses; none where nothing is scaled.

    >>> scaler_state(torch.amp.GradScaler("cpu", enabled=False))
    {}
    """
    state = scaler.state_dict()
    return {_SCALER: state} if state else {}


def load_scaler_(scaler: torch.amp.GradScaler, state_dict: Mapping[str, Any]) -> None:
    """Go on with the scale that :func:`scaler_state` returned."""
    if _SCALER in state_dict:
        scaler.load_state_dict(state_dict[_SCALER])
