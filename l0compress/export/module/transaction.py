"""Changes to somebody's module that are all made or none: parameters, buffers, attributes and children."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor, nn


class Transaction:
    """Changes a module in place; leaving the ``with`` block by an error, or without :meth:`commit_`, undoes it all.

    >>> import torch
    >>> layer = nn.Linear(4, 2)
    >>> with Transaction() as changes:
    ...     changes.put_(layer, "in_features", 3)
    ...     changes.cut_(layer.weight, layer.weight.detach()[:, :3])
    >>> layer.in_features, tuple(layer.weight.shape)
    (4, (2, 4))
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._after: list[Callable[[], Any]] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        while self._undo:
            self._undo.pop()()

    def commit_(self) -> None:
        """Keep what was changed."""
        self._undo.clear()
        for action in self._after:
            action()

    def cut_(self, tensor: Tensor, values: Tensor) -> None:
        """Give a parameter or buffer other values and another shape.

        The object stays the one that it is, so ties stay tied, and an optimizer from before the cut fails loudly
        instead of training what nobody uses any more.
        """
        old, gradient = tensor.data, tensor.grad
        self._undo.append(lambda: _restore_(tensor, old, gradient))
        tensor.grad = None
        tensor.data = values

    def put_(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute."""
        old = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, old))
        setattr(owner, name, value)

    def swap_(self, root: nn.Module, old: nn.Module, new: nn.Module) -> None:
        """Put ``new`` wherever ``old`` is a child inside ``root``."""
        for owner in list(root.modules()):
            for name, child in list(owner._modules.items()):
                if child is old:
                    self._undo.append(lambda owner=owner, name=name: owner._modules.update({name: old}))
                    owner._modules[name] = new

    def evaluating_(self, root: nn.Module) -> None:
        """Put a module into evaluation mode; every part of it has its own mode back in the end, committed or not."""
        modes = [(part, part.training) for part in root.modules()]

        def restore() -> None:
            for part, training in modes:
                part.training = training

        self._undo.append(restore)
        self._after.append(restore)
        root.eval()


def _restore_(tensor: Tensor, values: Tensor, gradient: Tensor | None) -> None:
    tensor.data = values
    tensor.grad = gradient
