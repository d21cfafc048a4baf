"""Rules for operators that the package does not know: custom ones, and those of PyTorch that it freezes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from l0compress.errors import InputError
from l0compress.graph.rules.registry import Result, Rule, Step, add_rule, known_rule
from l0compress.graph.surgery.registry import Cut, known_rewrite, set_rewrite
from l0compress.graph.values import Value

Rewrite = Callable[[Cut], None]


def register_rule(operator: str, rule: Rule | str, *, rewrite: Rewrite | None = None, replace: bool = False) -> None:
    """Teach how channels pass through an operator, for this process.

    Args:
        operator: the operator as ``"namespace::name"``, without overload; it must be known to PyTorch already.
        rule: a function from a :class:`~l0compress.graph.Step` to the :class:`~l0compress.graph.Value` of the result
            (a tuple of them where the operator returns several tensors), or the name of an operator of PyTorch that
            takes the same arguments at the same positions and whose rule and rewrite will do (``"relu"``).
        rewrite: adapts a node of the small graph, a :class:`~l0compress.graph.Cut`; needed only where the operator is
            given sizes, positions or counts of channels as numbers.
        replace: whether a rule that is there already may be replaced.

    Multiply-accumulates of such an operator count as 0.

    Raises:
        InputError: PyTorch has no such operator, there is a rule for it, or ``rule`` names an operator without one.

    Examples:
        >>> @torch.library.custom_op("doctest::halved", mutates_args=())
        ... def halved(x: torch.Tensor) -> torch.Tensor:
        ...     return x / 2
        >>> _ = halved.register_fake(torch.empty_like)
        >>> register_rule("doctest::halved", "relu")
        >>> register_rule("doctest::halved", "relu")
        Traceback (most recent call last):
        ...
        l0compress_runtime.errors.InputError: there is a rule for doctest::halved already. Nothing was changed. Pass \
replace=True to put another in its place.
    """
    key = _key(operator)
    if known_rule(key) is not None and not replace:
        raise InputError(
            f"there is a rule for {operator} already. Nothing was changed. Pass replace=True to put another in its "
            "place."
        )
    if isinstance(rule, str):
        found = known_rule(rule)
        if found is None:
            raise InputError(
                f"{operator} cannot follow the rule of {rule!r}, which has none. Nothing was changed. Name an operator "
                "of PyTorch that l0compress does not freeze, without namespace and overload, or write a function."
            )
        rewrite = known_rewrite(rule) if rewrite is None else rewrite
        add_rule(key, found)
    else:
        add_rule(key, _checked(operator, rule))
    set_rewrite(key, rewrite)


def _key(operator: str) -> str:
    """The name under which the tables know an operator."""
    namespace, separator, name = operator.partition("::")
    if not separator or not namespace or not name.isidentifier():
        raise InputError(
            f"{operator!r} is not the name of an operator. Nothing was changed. Write it as namespace::name, without "
            "overload, as in mylib::myop or aten::roll."
        )
    packet: Any = getattr(getattr(torch.ops, namespace), name, None)
    if packet is None:
        raise InputError(
            f"PyTorch has no operator {operator}. Nothing was changed. Import the library that defines it before "
            "register_rule is called, and check the spelling."
        )
    return name.rstrip("_") if namespace in ("aten", "prims") else operator


def _checked(operator: str, rule: Rule) -> Rule:
    """A user's rule whose result is looked at before anything is built on it."""

    def checked(step: Step) -> Result:
        result = rule(step)
        values = result if isinstance(result, tuple) else (result,)
        shapes = [value.shape if isinstance(value, Value) else None for value in values]
        if len(shapes) != len(step.shapes) or any(s not in (None, t) for s, t in zip(shapes, step.shapes, strict=True)):
            raise InputError(
                f"the rule for {operator} returned values of shapes {shapes} at {step.node.name}, where the operator "
                f"returns {list(step.shapes)}. Nothing was changed. Return Value(step.shape, planes)."
            )
        for plane in pytree.tree_leaves([value.planes for value in values if value is not None]):
            if not isinstance(plane, Tensor) or plane.dtype is not torch.int64 or plane.shape not in step.shapes:
                raise InputError(
                    f"the rule for {operator} returned a plane at {step.node.name} that is no int64 tensor of the "
                    "result's shape. Nothing was changed. Expand it with along(labels, dim, step.shape)."
                )
        return result

    return checked
