"""Where a run stands, as named tensors and plain values: all that it takes to go on, bit for bit.

requires: a run that is built again from the same model, data and settings.
ensures:  with the snapshot loaded into it, every later number is that of the run which was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

GATES, FINETUNE = "gates", "finetune"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Attributes:
    values: what JSON can hold: the stage, the position, the history, the multiplier.
    tensors: weights, gates, optimizer states, random states, all on the CPU; names are paths with dots.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix`` and a dot, without it.

        >>> Snapshot({}, {"best.a": torch.zeros(1), "bestial.b": torch.ones(1)}).under("best")
        {'a': tensor([0.])}
        """
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }

    @property
    def stage(self) -> str:
        """The phase that it was taken in: "gates" or "finetune"."""
        return self.values["stage"]


class Checkpoints(Protocol):
    """Where snapshots go, and the one that a run starts from."""

    @property
    def start(self) -> Snapshot | None: ...

    def offer_(self, make: Callable[[], Snapshot], *, must: bool = False) -> None:
        """Called after every step: makes and keeps a snapshot if one is due, or if it must; may end the run."""
        ...


@dataclass(frozen=True)
class NoCheckpoints:
    """A run that starts at the beginning and keeps nothing."""

    start: Snapshot | None = None

    def offer_(self, make: Callable[[], Snapshot], *, must: bool = False) -> None:
        """Nothing is kept."""


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under a path."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


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
        loaded = value.clone().to(parameter.device) if state is None else state.detach().copy_(value)
        optimizer.state[parameter][key] = loaded.requires_grad_(False)
