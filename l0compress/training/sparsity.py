"""Zeros that stay zero: single weights that were removed, while the others are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

from l0compress.devices import constant_on
from l0compress.errors import InputError, NotEqualError

NO_MASKS: Mapping[str, Tensor] = MappingProxyType({})
Network = TypeVar("Network", bound=nn.Module)


def keep_zeros_(network: Network, masks: Mapping[str, Tensor] | None = None) -> Network:
    """Set the weights that ``masks`` drop to zero and keep them at it, whatever optimizer trains the network.

    Their gradients are zeroed as soon as they are there, so that gradient clipping does not count them and neither
    momentum nor weight decay moves them. Returns the network.

    Args:
        masks: by name of the parameter, bool of its shape, True = trained. None: what is zero now stays zero, in
            parameters of two or more dimensions.

    Raises:
        InputError: a mask does not fit the parameter of its name.

    Example:
        >>> layer = keep_zeros_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight[0, 1].item() == 0
        True
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    if masks is None:
        masks = {name: parameter.detach() != 0 for name, parameter in parameters.items() if parameter.dim() > 1}
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise InputError(
                f"the mask for {name!r} has shape {tuple(mask.shape)}, but the network has no such parameter.",
                fix="Make the masks with plan.small_masks() of the plan that the network was shrunk by.",
            )
    for name, mask in masks.items():
        _keep_(parameters[name], mask)
    return network


def _keep_(parameter: nn.Parameter, mask: Tensor) -> None:
    def silence(trained: Tensor) -> None:
        if trained.grad is not None:  # the network may have been moved since
            trained.grad.mul_(constant_on(mask, trained.grad.device))

    with torch.no_grad():
        parameter.mul_(mask.to(parameter.device))
    parameter.register_post_accumulate_grad_hook(silence)


def check_zeros(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Raises:
    NotEqualError: a weight that ``masks`` drop is not exactly zero.
    """
    for name, mask in masks.items():
        broken = int((state[name].detach().cpu()[~mask] != 0).sum())
        if broken:
            raise NotEqualError(
                f"{broken:,} of the {int((~mask).sum()):,} weights that were removed from {name!r} are not zero after "
                "training.",
                fix="This is a defect of l0compress: please report the model.",
            )
