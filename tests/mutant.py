"""A fault to plant: in which function, what is replaced by what, and which tests have to notice.

A :class:`Fault` is found by name and matched by syntax, so that neither formatting nor moving a file disturbs it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class NotPlantedError(Exception):
    """A fault has no place, or more than one."""


@dataclass(frozen=True)
class Fault:
    """One planted fault, by name.

    Attributes:
        where: ``package.module:name``, the name being that of a function, a method (``Class.method``), a function
            within a function (``outer.inner``), or a constant of the module. Instead of the module a package may stand
            that it lies in: the name has to be defined once below it.
        old: an expression or statements, however they are laid out, that occur exactly once under that name; empty: the
            whole body of the function.
        new: what takes their place.
        tests: a file below ``tests/graph``, and which of its tests (pytest's ``-k``; empty: all).
    """

    where: str
    old: str
    new: str
    tests: tuple[str, str]

    def planted(self, root: Path) -> tuple[Path, str]:
        """The file below ``root`` that the fault is in, and its source with the fault.

        Raises:
            NotPlantedError: the name is not defined exactly once, or the text does not occur in it exactly once.
        """
        file, tree, scope = _located(root, self.where)
        if self.old:
            _swap_(scope, self.old, self.new)
        else:
            _replace_body_(scope, self.new)
        return file, ast.unparse(ast.fix_missing_locations(tree))


def _located(root: Path, where: str) -> tuple[Path, ast.Module, Scope]:
    module, _, name = where.partition(":")
    place = root.joinpath(*module.split("."))
    files = [place.with_suffix(".py")] if place.with_suffix(".py").is_file() else sorted(place.rglob("*.py"))
    names = tuple(name.split("."))
    sources = [(file, file.read_text()) for file in files]
    trees = [(file, ast.parse(source)) for file, source in sources if names[-1] in source]
    found = [(file, tree, scope) for file, tree in trees for scope in _scopes(tree.body, names)]
    if len(found) != 1:
        raise NotPlantedError(f"{where} is defined {len(found)} times")
    return found[0]


def _scopes(body: Sequence[ast.stmt], names: tuple[str, ...]) -> Iterator[Scope]:
    """The statements that define a name; of a dotted one, within what its first part defines."""
    for statement in body:
        if isinstance(statement, _DEFINITIONS):
            if statement.name == names[0]:
                yield from [statement] if len(names) == 1 else _scopes(statement.body, names[1:])
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if len(names) == 1 and any(isinstance(each, ast.Name) and each.id == names[0] for each in targets):
                yield statement
        else:
            for field in ("body", "orelse"):
                yield from _scopes(getattr(statement, field, []), names)


def _replace_body_(scope: Scope, new: str) -> None:
    if not isinstance(scope, ast.FunctionDef):
        raise NotPlantedError("only a function has a body to replace")
    scope.body = ast.parse(new).body


def _swap_(scope: Scope, old: str, new: str) -> None:
    swap = _Swap(ast.parse(old).body, ast.parse(new).body)
    swap.visit(scope)
    if swap.count != 1:
        raise NotPlantedError(f"{old!r} occurs {swap.count} times")


class _Swap(ast.NodeTransformer):
    """Puts statements, or an expression, in the place of others, and counts how often."""

    def __init__(self, old: list[ast.stmt], new: list[ast.stmt]) -> None:
        self.count = 0
        self._old, self._new = [ast.dump(statement) for statement in old], new
        only = old[0] if len(old) == 1 else None
        self._expression = ast.dump(only.value) if isinstance(only, ast.Expr) else None

    def visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, ast.expr) or ast.dump(node) != self._expression:
            return super().visit(node)
        replacement = self._new[0] if self._new else None
        if not isinstance(replacement, ast.Expr):
            return node  # where it is a statement of its own, that goes
        self.count += 1
        return replacement.value

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, field, self._swapped(value) or [ast.Pass()])
        return node

    def _swapped(self, body: list[ast.stmt]) -> list[ast.stmt]:
        dumped, length = [ast.dump(statement) for statement in body], len(self._old)
        places = [first for first in range(len(body)) if dumped[first : first + length] == self._old]
        self.count += len(places)
        return [*body[: places[0]], *self._new, *body[places[0] + length :]] if places else body


FORMS, GROUPS, VANISH, SHRINK = "test_forms.py", "test_groups.py", "test_vanish.py", "test_shrink.py"
INDEXING, COST, PLAN = "test_rules_indexing.py", "test_cost.py", "test_plan.py"
RECURRENT, TRANSPOSED = "test_recurrent.py", "test_rules_convolution.py"
NORMS, LAYER_NORM = "test_rules_normalization.py", "test_layer_norm.py"
REDUCTION = "test_rules_reduction.py"
