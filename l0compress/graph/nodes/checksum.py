"""Checksums of weights, to tell whether two graphs hold the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_checksum(state: Mapping[str, Tensor]) -> str:
    """A checksum of named tensors: names, shapes and values count, the order of names does not.

    >>> one = weights_checksum({"a": torch.zeros(2), "b": torch.ones(3)})
    >>> one == weights_checksum({"b": torch.ones(3), "a": torch.zeros(2)})
    True
    >>> one == weights_checksum({"a": torch.zeros(2), "b": torch.tensor([1, 1, 1.0000001])})
    False
    """
    # A sum over bits needs one pass and no copy, and is the same in every order and on every device.
    lines = [f"{name} {tuple(tensor.shape)} {int(_bits(tensor).sum())}" for name, tensor in sorted(state.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _bits(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.detach().view(_BITS[real.element_size()])
