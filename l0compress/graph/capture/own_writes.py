"""Which of a module's own attributes its ``forward`` sets, and what they were before the first call.

Read off the source of the classes, since an attribute that holds a cached value says nothing of where it came from.
Nothing here runs the model.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from l0compress.graph.nodes.sources import short_line

_FILLS = frozenset(
    {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "clear", "remove"}
)
_EMPTIES = {"dict": dict, "list": list, "set": set, "tuple": tuple}
_MAKERS = frozenset({"empty", "zeros", "ones", "tensor", "Size", "device"})

ABSENT: Any = object()
UNKNOWN: Any = object()


@dataclass(frozen=True)
class _Store:
    """``self.a.b = value`` at a line: the chain of names behind ``self``, and the value where it is one expression."""

    chain: tuple[str, ...]
    line: int
    value: ast.expr | None


@dataclass(frozen=True)
class _Method:
    """One function of a class: what it stores, and the names that it looks up."""

    file: str
    stores: tuple[_Store, ...]
    names: frozenset[str]


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
    classes = {cls: None for module in modules.values() for cls in _own_classes(type(module))}
    reader = _Reader()
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
                found[id(owner), name] = OwnWrite(owner, owner_path, name, source, reader.initial(owner, name))
    return OwnWrites(tuple(found.values()), reader.complete)


def _is_no_state(owner: nn.Module, name: str) -> bool:
    return name == "training" or name in owner._parameters or name in owner._modules


def _own_classes(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.partition(".")[0] != "torch" and base is not object]


def _methods_of(module: nn.Module, reached: dict[tuple[type, str], _Method]) -> Iterator[_Method]:
    own = set(_own_classes(type(module)))
    return (method for (cls, _), method in reached.items() if cls in own)


def _owner(module: nn.Module, path: str, chain: Iterable[str]) -> tuple[nn.Module | None, str]:
    owner: Any = module
    for name in chain:
        owner = owner._modules.get(name)
        path = f"{path}.{name}" if path else name
        if owner is None:
            return None, path
    return owner, path


@dataclass(eq=False)
class _Reader:
    """Parses every function once."""

    parsed: dict[Any, _Method | None] = field(default_factory=dict)
    complete: bool = True

    def reached(self, start: str, classes: Iterable[type]) -> dict[tuple[type, str], _Method]:
        """The functions of these classes that can be called from the one named ``start``, by their names alone."""
        found: dict[tuple[type, str], _Method] = {}
        pending, seen = [start], {start}
        while pending:
            name = pending.pop()
            for cls in classes:
                method = self._method(vars(cls).get(name))
                if method is not None:
                    found[cls, name] = method
                    pending += method.names - seen
                    seen |= method.names
        return found

    def initial(self, module: nn.Module, name: str) -> Any:
        """What an attribute is after ``__init__``."""
        classes = _own_classes(type(module))
        constructing = self.reached("__init__", classes)
        for cls in classes:
            stores = [s for (c, _), m in constructing.items() if c is cls for s in m.stores if s.chain == (name,)]
            if stores:
                values = {ast.dump(s.value) if s.value is not None else "" for s in stores}
                return _evaluated(stores[0].value) if len(values) == 1 and stores[0].value is not None else UNKNOWN
        return ABSENT

    def _method(self, value: Any) -> _Method | None:
        function = _function(value)
        if function is None:
            return None
        if function not in self.parsed:
            try:
                self.parsed[function] = _parse(function)
            except (OSError, SyntaxError):  # typed into a prompt, generated, or a lambda among other things
                self.parsed[function], self.complete = None, False
        return self.parsed[function]


def _function(value: Any) -> Callable[..., Any] | None:
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    value = inspect.unwrap(value) if callable(value) else None
    return value if inspect.isfunction(value) else None


def _parse(function: Callable[..., Any]) -> _Method | None:
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    arguments = definition.args.args if isinstance(definition, ast.FunctionDef) else []
    if not arguments:
        return None
    own = arguments[0].arg
    file = inspect.getsourcefile(function) or ""
    stores = [
        _Store(chain, first + at - 1, value)
        for node in ast.walk(definition)
        for target, at, value in _targets(node, own)
        if (chain := _chain(target, own))
    ]
    names = frozenset(node.attr for node in ast.walk(definition) if isinstance(node, ast.Attribute))
    return _Method(file, tuple(stores), names)


def _targets(node: ast.AST, own: str) -> Iterator[tuple[ast.expr, int, ast.expr | None]]:
    """What a statement or call sets: the target, the line, and the value where it is one expression."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _unpacked(target, node.value, node.lineno)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield from _unpacked(node.target, node.value, node.lineno)
    elif isinstance(node, ast.AugAssign):
        yield from _unpacked(node.target, None, node.lineno)
    elif isinstance(node, ast.Call):
        yield from _called(node, own)


def _unpacked(target: ast.expr, value: ast.expr | None, line: int) -> Iterator[tuple[ast.expr, int, ast.expr | None]]:
    if isinstance(target, ast.Tuple | ast.List):
        several = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
        values = value.elts if several and isinstance(value, ast.Tuple | ast.List) else [None] * len(target.elts)
        for part, of_part in zip(target.elts, values, strict=True):
            yield from _unpacked(part, of_part, line)
    elif isinstance(target, ast.Subscript):
        yield target.value, line, None  # an item of a container that stays
    elif isinstance(target, ast.Attribute):
        yield target, line, value


def _called(node: ast.Call, own: str) -> Iterator[tuple[ast.expr, int, ast.expr | None]]:
    """Calls that set something: ``setattr``, ``register_buffer``, and methods that fill containers or tensors."""
    function, args = node.func, node.args
    if isinstance(function, ast.Name) and function.id == "setattr" and len(args) == 3:
        target, name, value = args[0], args[1], args[2]
    elif isinstance(function, ast.Attribute) and function.attr == "register_buffer" and args:
        value = args[1] if len(args) > 1 else next((k.value for k in node.keywords if k.arg == "tensor"), None)
        target, name = function.value, args[0]
    elif isinstance(function, ast.Attribute) and _fills(function.attr) and _chain(function.value, own):
        yield function.value, node.lineno, None
        return
    else:
        return
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        yield ast.Attribute(target, name.value, ast.Store()), node.lineno, value


def _fills(method: str) -> bool:
    return method in _FILLS or (method.endswith("_") and not method.endswith("__"))


def _chain(target: ast.expr, own: str) -> tuple[str, ...]:
    """The names behind ``self``; none for anything else."""
    names: list[str] = []
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    return tuple(reversed(names)) if isinstance(target, ast.Name) and target.id == own else ()


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
