"""What the functions of a class set of ``self``, read off their source. Nothing here runs them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

_FILLS = frozenset(
    {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "clear", "remove"}
)


@dataclass(frozen=True)
class Store:
    """``self.a.b = value`` at a line: the chain of names behind ``self``, and the value where it is one expression."""

    chain: tuple[str, ...]
    line: int
    value: ast.expr | None


@dataclass(frozen=True)
class Method:
    """One function of a class: what it stores, and the names that it looks up."""

    file: str
    stores: tuple[Store, ...]
    names: frozenset[str]


def own_classes(cls: type) -> list[type]:
    """Return a class and its bases, without those of torch."""
    return [base for base in cls.__mro__ if base.__module__.partition(".")[0] != "torch" and base is not object]


@dataclass(eq=False)
class SourceReader:
    """Parses every function once.

    Attributes:
        parsed: what was read of each function; None where there is nothing to read.
        complete: whether the source of every function could be read.
    """

    parsed: dict[Any, Method | None] = field(default_factory=dict)
    complete: bool = True

    def reached(self, start: str, classes: Iterable[type]) -> dict[tuple[type, str], Method]:
        """Return the functions of these classes that ``start`` can call, directly or not, by their names alone."""
        found: dict[tuple[type, str], Method] = {}
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

    def _method(self, value: Any) -> Method | None:
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


def _parse(function: Callable[..., Any]) -> Method | None:
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    arguments = definition.args.args if isinstance(definition, ast.FunctionDef) else []
    if not arguments:
        return None
    own = arguments[0].arg
    file = inspect.getsourcefile(function) or ""
    stores = [
        Store(chain, first + at - 1, value)
        for node in ast.walk(definition)
        for target, at, value in _targets(node, own)
        if (chain := _chain(target, own))
    ]
    names = frozenset(node.attr for node in ast.walk(definition) if isinstance(node, ast.Attribute))
    return Method(file, tuple(stores), names)


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
