"""Which of a module's own attributes its ``forward`` sets, and what they were before the first call.

Read off the source of the classes, since an attribute that holds a cached value says nothing of where it came from.
Nothing here runs the model.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from l0compress.graph.capture.assignments import Method, SourceReader, own_classes
from l0compress.graph.nodes.sources import short_line

_EMPTIES = {"dict": dict, "list": list, "set": set, "tuple": tuple}
_MAKERS = frozenset({"empty", "zeros", "ones", "tensor", "Size", "device"})

ABSENT: Any = object()
UNKNOWN: Any = object()


@dataclass(frozen=True, eq=False)
class OwnWrite:
    """An attribute or buffer of a module that its model's ``forward`` sets.

    Attributes:
        module: whose attribute it is.
        path: of the module in the model.
        attribute: its name.
        source: ``file.py:line`` of the assignment.
        initial: what it was before the first call: a value, ``ABSENT``, or ``UNKNOWN``.
    """

    module: nn.Module
    path: str
    attribute: str
    source: str
    initial: Any

    @property
    def name(self) -> str:
        """Dotted, from the model."""
        return f"{self.path}.{self.attribute}" if self.path else self.attribute

    @property
    def stale(self) -> bool:
        """Whether it is known what it was, and it is something else now."""
        return self.initial is not UNKNOWN and not _same(self._held(), self.initial)

    def reset_(self) -> None:
        """Make it what it was before the first call."""
        buffers = self.module._buffers
        table: dict[str, Any] = buffers if self.attribute in buffers else vars(self.module)
        if self.initial is ABSENT:
            table.pop(self.attribute, None)
            return
        old, value = table.get(self.attribute), copy.copy(self.initial)
        if table is buffers and isinstance(value, Tensor) and isinstance(old, Tensor):
            value = value.to(old.device, old.dtype)
        table[self.attribute] = value

    def _held(self) -> Any:
        return self.module._buffers.get(self.attribute, vars(self.module).get(self.attribute, ABSENT))


@dataclass(frozen=True, eq=False)
class OwnWrites:
    """What ``forward`` of a model sets of its own state.

    Attributes:
        found: attribute by attribute; parameters and submodules do not count.
        complete: whether the source of every function that it calls could be read.
    """

    found: tuple[OwnWrite, ...]
    complete: bool


def own_writes(model: nn.Module) -> OwnWrites:
    """Every attribute that a function sets which ``forward`` of ``model`` can reach.

    What is set through a variable or by a name made at run time is not found.

    Examples:
        >>> own_writes(nn.Linear(2, 2))
        OwnWrites(found=(), complete=True)
    """
    modules = dict(model.named_modules())
    classes = {cls: None for module in modules.values() for cls in own_classes(type(module))}
    reader = SourceReader()
    reached = reader.reached("forward", classes)
    found: dict[tuple[int, str], OwnWrite] = {}
    for path, module in modules.items():
        for method in _methods_of(module, reached):
            for store in method.stores:
                owner, owner_path = _owner(module, path, store.chain[:-1])
                name = store.chain[-1]
                if owner is None or (id(owner), name) in found or _is_no_state(owner, name):
                    continue
                source = short_line(method.file, store.line)
                found[id(owner), name] = OwnWrite(owner, owner_path, name, source, _initial(reader, owner, name))
    return OwnWrites(tuple(found.values()), reader.complete)


def _is_no_state(owner: nn.Module, name: str) -> bool:
    return name == "training" or name in owner._parameters or name in owner._modules


def _methods_of(module: nn.Module, reached: dict[tuple[type, str], Method]) -> Iterator[Method]:
    own = set(own_classes(type(module)))
    return (method for (cls, _), method in reached.items() if cls in own)


def _owner(module: nn.Module, path: str, chain: Iterable[str]) -> tuple[nn.Module | None, str]:
    owner: Any = module
    for name in chain:
        owner = owner._modules.get(name)
        path = f"{path}.{name}" if path else name
        if owner is None:
            return None, path
    return owner, path


def _initial(reader: SourceReader, module: nn.Module, name: str) -> Any:
    """What an attribute is after ``__init__``."""
    classes = own_classes(type(module))
    constructing = reader.reached("__init__", classes)
    for cls in classes:
        stores = [s for (c, _), m in constructing.items() if c is cls for s in m.stores if s.chain == (name,)]
        if stores:
            values = {ast.dump(s.value) if s.value is not None else "" for s in stores}
            return _evaluated(stores[0].value) if len(values) == 1 and stores[0].value is not None else UNKNOWN
    return ABSENT


def _evaluated(value: ast.expr) -> Any:
    """A literal, an empty container, or a tensor of literals (``torch.empty(0)``); anything else is unknown."""
    if isinstance(value, ast.Call) and not value.keywords:
        maker: Any = None
        if isinstance(value.func, ast.Name) and not value.args:
            maker = _EMPTIES.get(value.func.id)
        elif isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Name):
            known = value.func.value.id == "torch" and value.func.attr in _MAKERS
            maker = getattr(torch, value.func.attr) if known else None
        arguments = [_evaluated(argument) for argument in value.args]
        return UNKNOWN if maker is None or UNKNOWN in arguments else maker(*arguments)
    try:
        return ast.literal_eval(value)
    except ValueError:
        return UNKNOWN


def _same(held: Any, initial: Any) -> bool:
    if held is initial:
        return True
    if type(held) is not type(initial):
        return False
    if isinstance(held, Tensor):
        return not isinstance(held, FakeTensor) and held.shape == initial.shape and torch.equal(held, initial)
    # Not ==, which tensors in a container would answer by tensors.
    return repr(held) == repr(initial)
