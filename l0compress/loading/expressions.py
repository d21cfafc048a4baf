"""Symbolic sizes in exported programs: sympy evaluates their text as Python, so only arithmetic may reach it."""

from __future__ import annotations

import ast
import re

LONGEST = 2_000
LARGEST_NUMBER = 2**64
LARGEST_EXPONENT = 8
SYMBOL = re.compile(r"[a-z][a-z_]{0,39}[0-9]{0,9}")
ASSUMPTIONS = frozenset({"positive", "integer", "nonnegative", "real", "nonzero", "finite"})
FUNCTIONS = frozenset(
    {
        "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality",
        "FloatPow", "FloatTrueDiv", "FloorDiv",
        "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv", "LShift",
        "IsNonOverlappingAndDenseIndicator",
        "Le", "LessThan", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "Piecewise",
        "PythonMod", "RShift", "RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan", "ToFloat",
        "TruncToFloat", "TruncToInt", "Unequality", "Where", "ceiling", "floor", "Integer", "Float", "Rational",
    }
)  # fmt: skip
CONSTANTS = frozenset({"True", "False", "oo", "int_oo", "true", "false"})
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv,
    ast.Mod, ast.USub, ast.UAdd, ast.Not, ast.And, ast.Or, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
    ast.BitAnd, ast.BitOr, ast.Invert, ast.Load, ast.Tuple,
)  # fmt: skip


def is_arithmetic(text: str) -> bool:
    """Return whether a text is plain arithmetic over symbols, as ``torch.export`` writes symbolic sizes.

    Example:
        >>> is_arithmetic("2*Max(1, s77) + Symbol('u0', integer=True)//4")
        True
        >>> is_arithmetic("__import__('os').system('true')"), is_arithmetic("9**9**9"), is_arithmetic("(1).real")
        (False, False, False)
    """
    if len(text) > LONGEST:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return _is_fine(tree)


def _is_fine(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _is_fine_call(node)
    if isinstance(node, ast.Name):
        return node.id in CONSTANTS or SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float) and abs(node.value) < LARGEST_NUMBER
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_power(node.left, node.right)
    return isinstance(node, _ARITHMETIC) and all(_is_fine(child) for child in ast.iter_child_nodes(node))


def _is_power(base: ast.AST, exponent: ast.AST) -> bool:
    """Return whether it is a small power of something without powers: nested powers make astronomical numbers."""
    if isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name) and exponent.func.id == "Integer":
        exponent = exponent.args[0] if len(exponent.args) == 1 and not exponent.keywords else exponent
    value = exponent.value if isinstance(exponent, ast.Constant) else None
    is_small = type(value) is int and 0 <= value <= LARGEST_EXPONENT
    return is_small and not _holds_power(base) and _is_fine(base)


def _holds_power(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Pow) or (isinstance(part, ast.Name) and part.id == "Pow") for part in ast.walk(node)
    )


def _is_fine_call(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Name):
        return False
    if node.func.id == "Symbol":
        names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        return (
            len(names) == len(node.args) == 1
            and SYMBOL.fullmatch(names[0]) is not None
            and all(_is_assumption(keyword) for keyword in node.keywords)
        )
    if node.func.id == "Pow":
        return len(node.args) == 2 and not node.keywords and _is_power(*node.args)
    return node.func.id in FUNCTIONS and not node.keywords and all(_is_fine(argument) for argument in node.args)


def _is_assumption(keyword: ast.keyword) -> bool:
    return (
        keyword.arg in ASSUMPTIONS and isinstance(keyword.value, ast.Constant) and keyword.value.value in (True, False)
    )
