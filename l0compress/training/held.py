"""What a phase trains, as it is held: a network of which each process has all weights, or a part of them.

Tensors that are divided are torch's ``DTensor``. They are known where ``torch.distributed.tensor`` was imported, which
takes a second and is done only where something is divided.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Held:
    """A network of which this process has all weights.

    Attributes:
        network: what is run.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def tensors(self) -> dict[str, Tensor]:
        """The network's state by name, detached; tensors may be divided."""
        return dict(self.network.state_dict())

    def load_(self, state: Mapping[str, Tensor]) -> None:
        """Put whole tensors in the place of the network's state."""
        self.network.load_state_dict(state)

    def divided(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors by the names of the network's state, divided as it is."""
        return dict(state)

    def parameters_of(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """What an optimizer gets for these parameters of the network."""
        return dict(parameters)

    def gather_(self) -> None:
        """Put whole weights into the network that was given."""

    def part_(self) -> None:
        """Free whole weights of the network that was given."""


def is_divided(tensor: object) -> bool:
    """Whether a tensor is divided over processes.

    >>> is_divided(torch.zeros(1))
    False
    """
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Where it is divided, all processes have to ask for it.

    >>> whole(torch.zeros(1))
    tensor([0.])
    """
    divided: Any = tensor
    return divided.full_tensor() if is_divided(tensor) else tensor


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, which all processes have, divided as another of its shape is."""
    if not is_divided(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    like: Any = other
    here = tensor.to(like.to_local().device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def stored(tensor: Tensor, *, keep: bool) -> Tensor:
    """All of a tensor on the CPU, or of a divided one its shape alone, unless ``keep``; all processes have to ask."""
    found = whole(tensor).detach()
    return found.cpu() if keep or not is_divided(tensor) else torch.empty_like(found, device="meta")
