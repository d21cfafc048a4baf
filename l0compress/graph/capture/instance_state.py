"""What a module holds beside its weights: attributes that ``forward`` may set, and containers that it may fill.

Running or tracing somebody's module must leave no mark on it. :func:`kept` puts everything back: attributes that were
bound anew, containers that were filled, training flags, hooks, submodules and, where wanted, what tensors hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

_CONTAINERS = (dict, list, set, deque)
_LEAVES = (
    Tensor, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, str, bytes, int, float, complex,
    torch.Generator, torch.dtype, torch.device,
)  # fmt: skip
# The dictionaries in which nn.Module keeps what its user knows as attributes.
_TABLES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, eq=False)
class _Held:
    """A container and what it held.

    Attributes:
        container: the very object.
        items: a shallow copy of its contents.
        name: of the attribute that holds it; of the module, if its keys are attributes themselves.
        keyed: whether they are.
    """

    container: Any
    items: Any
    name: str
    keyed: bool

    def differing(self) -> list[str]:
        """Names of the attributes that are not as they were."""
        if not isinstance(self.container, dict):
            now = list(self.container)
            same = len(now) == len(self.items) and all(a is b for a, b in zip(now, self.items, strict=True))
            return [] if same else [self.name]
        absent = object()
        keys = [
            key
            for key in {**self.items, **self.container}
            if self.container.get(key, absent) is not self.items.get(key, absent)
        ]
        if not self.keyed:
            return [self.name] if keys else []
        return [_joined(self.name, key) for key in keys if key != "training"]

    def restore_(self) -> None:
        if isinstance(self.container, dict | set):
            self.container.clear()
            self.container.update(self.items)
        elif isinstance(self.container, list):
            self.container[:] = self.items
        else:
            self.container.clear()
            self.container.extend(self.items)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a module and everything in it held at one moment; made by :func:`snapshot_of`."""

    held: tuple[_Held, ...]
    tensors: tuple[tuple[str, Tensor, Tensor], ...]

    def changed(self) -> tuple[str, ...]:
        """Names of the attributes and buffers that are not as they were; ``training`` does not count.

        Examples:
            >>> model = nn.Sequential(nn.ReLU())
            >>> snapshot = snapshot_of(model)
            >>> model[0].calls = 1
            >>> snapshot.changed()
            ('0.calls',)
        """
        names = [name for held in self.held for name in held.differing()]
        names += [name for name, tensor, value in self.tensors if not torch.equal(tensor, value)]
        return tuple(dict.fromkeys(names))

    def restore_(self) -> None:
        """Put everything back."""
        for held in self.held:
            held.restore_()
        with torch.no_grad():
            for _, tensor, value in self.tensors:
                if not torch.equal(tensor, value):
                    tensor.data.copy_(value)


def snapshot_of(model: nn.Module, *, values: bool = False) -> Snapshot:
    """What ``model`` holds now.

    Args:
        values: note what buffers and tensors in plain attributes hold, too, which takes a copy of each.
    """
    walk = _Walk(values)
    for name, module in model.named_modules():
        walk.module_(name, module)
    return Snapshot(tuple(walk.held), tuple(walk.tensors))


@contextmanager
def kept(model: nn.Module, *, values: bool = False) -> Iterator[Snapshot]:
    """Whatever happens inside, ``model`` holds afterwards what it held before.

    Args:
        values: as of :func:`snapshot_of`.

    Examples:
        >>> model = nn.Dropout()
        >>> with kept(model):
        ...     model.mask = model.eval()
        >>> model.training, "mask" in vars(model)
        (True, False)
    """
    snapshot = snapshot_of(model, values=values)
    try:
        yield snapshot
    finally:
        snapshot.restore_()


def _joined(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


class _Walk:
    """Every container that is reached from a module, each once."""

    def __init__(self, values: bool) -> None:
        self.values = values
        self.held: list[_Held] = []
        self.tensors: list[tuple[str, Tensor, Tensor]] = []
        self.seen: set[int] = set()

    def module_(self, name: str, module: nn.Module) -> None:
        if self._known(module):
            return
        attributes = vars(module)
        self._hold_(attributes, name, keyed=True)
        for table in _TABLES:
            self._hold_(attributes[table], name, keyed=True)
            self.seen.add(id(attributes[table]))
        for key, value in {**attributes, **attributes["_buffers"]}.items():
            self._value_(_joined(name, key), value)

    def _hold_(self, container: Any, name: str, *, keyed: bool = False) -> None:
        items = dict(container) if isinstance(container, dict) else list(container)
        self.held.append(_Held(container, items, name, keyed))

    def _known(self, value: Any) -> bool:
        known = id(value) in self.seen
        self.seen.add(id(value))
        return known

    def _value_(self, name: str, root: Any) -> None:
        pending = [root]
        while pending:
            value = pending.pop()
            if isinstance(value, nn.Module):
                self.module_(name, value)
            elif isinstance(value, Tensor):
                self._tensor_(name, value)
            elif isinstance(value, _LEAVES) or value is None or self._known(value):
                continue
            elif isinstance(value, _CONTAINERS):
                self._hold_(value, name)
                pending += value.values() if isinstance(value, dict) else value
            elif isinstance(value, tuple | frozenset):
                pending += value
            elif isinstance(getattr(value, "__dict__", None), dict):
                self._hold_(vars(value), name)
                pending += vars(value).values()

    def _tensor_(self, name: str, tensor: Tensor) -> None:
        readable = not (tensor.is_meta or isinstance(tensor, FakeTensor) or tensor.is_sparse or tensor.is_quantized)
        if self.values and readable and not isinstance(tensor, nn.Parameter) and not self._known(tensor):
            self.tensors.append((name, tensor, tensor.detach().clone()))
