"""Records of operators that the package does not know: custom ones, and those of PyTorch that it freezes."""

from __future__ import annotations

from dataclasses import replace as with_fields
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from l0compress.errors import InputError
from l0compress.graph.labels.values import Value
from l0compress.graph.operators.record import Operator, Result, Rewrite, Rule, known_operator, register
from l0compress.graph.operators.step import Step


def register_operator(name: str, operator: Operator | str, *, replace: bool = False) -> None:
    """Teach the package an operator, for this process.

    Args:
        name: the operator as ``"namespace::name"``, without overload; it must be known to PyTorch already.
        operator: its record, of which ``label`` is required. Or the name of an operator of PyTorch that takes the same
            arguments at the same positions and treats channels alike (``"relu"``): then labels, multiply-accumulates,
            weights and rewriting are that operator's. What it makes of constants is not, since it may compute
            something else.
        replace: whether a record that is there already may be replaced.

    Multiply-accumulates go with the channels of the result, unless ``label`` says otherwise by
    :meth:`Step.record_macs <l0compress.graph.operators.step.Step.record_macs>`.

    Raises:
        InputError: PyTorch has no such operator, there is a record of it, ``operator`` names one without a record, or
            the record has no ``label``.

    Examples:
        >>> @torch.library.custom_op("doctest::halved", mutates_args=())
        ... def halved(x: torch.Tensor) -> torch.Tensor:
        ...     return x / 2
        >>> _ = halved.register_fake(torch.empty_like)
        >>> register_operator("doctest::halved", "relu")
        >>> register_operator("doctest::halved", "relu")
        Traceback (most recent call last):
        ...
        l0compress_runtime.errors.InputError: doctest::halved already has a rule. Nothing was changed. Pass \
replace=True to replace it.
    """
    _enter(name, _record(name, operator), replace=replace)


def register_rule(operator: str, rule: Rule | str, *, rewrite: Rewrite | None = None, replace: bool = False) -> None:
    """Teach how channels pass through an operator: :func:`register_operator` with a label and a rewrite alone.

    Raises:
        InputError: as :func:`register_operator`.
    """
    record = _record(operator, rule if isinstance(rule, str) else Operator(label=rule))
    _enter(operator, record if rewrite is None else with_fields(record, rewrite=rewrite), replace=replace)


def _enter(name: str, record: Operator, *, replace: bool) -> None:
    key = _key(name)
    if known_operator(key) is not None and not replace:
        raise InputError(f"{name} already has a rule.", fix="Pass replace=True to replace it.")
    register(record, key)


def _record(name: str, operator: Operator | str) -> Operator:
    """What is entered: the record of an operator that is alike, or the user's own, its label checked at each use."""
    if isinstance(operator, str):
        return _like(name, operator)
    if operator.label is None:
        raise InputError(
            f"the record of {name} has no label, so that nothing is known of its channels.",
            fix="Write Operator(label=...), a function from a Step to the Value of the result.",
        )
    return with_fields(operator, label=_checked(name, operator.label))


def _like(name: str, other: str) -> Operator:
    """The record of an operator that treats channels as ``other`` does, and may compute something else."""
    found = known_operator(other)
    if found is None or found.label is None:
        raise InputError(
            f"{name} cannot follow the rule of {other!r}, which has none.",
            fix=(
                "Name an operator of PyTorch that l0compress does not freeze, without namespace and overload, or "
                "write a function."
            ),
        )
    weights = None if found.weights is None else with_fields(found.weights, axis=None)
    return Operator(label=found.label, macs=found.macs, weights=weights, rewrite=found.rewrite)


def _key(operator: str) -> str:
    """The name under which the table knows an operator."""
    namespace, separator, name = operator.partition("::")
    if not separator or not namespace or not name.isidentifier():
        raise InputError(
            f"{operator!r} is not the name of an operator.",
            fix="Write it as namespace::name, without overload, as in mylib::myop or aten::roll.",
        )
    packet: Any = getattr(getattr(torch.ops, namespace), name, None)
    if packet is None:
        raise InputError(
            f"PyTorch has no operator {operator}.",
            fix="Import the library that defines it before it is registered, and check the spelling.",
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
                f"returns {list(step.shapes)}.",
                fix="Return Value(step.shape, planes).",
            )
        for plane in pytree.tree_leaves([value.planes for value in values if value is not None]):
            if not isinstance(plane, Tensor) or plane.dtype is not torch.int64 or plane.shape not in step.shapes:
                raise InputError(
                    f"the rule for {operator} returned a plane at {step.node.name} that is not an int64 tensor of the "
                    "result's shape.",
                    fix="Expand it with along(labels, dim, step.shape).",
                )
        return result

    return checked
