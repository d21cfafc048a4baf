"""The table of operators: which function computes a node, and in what form it takes its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])
# Turns a node's weights, by position, into those that PyTorch wants: by position a list of a suffix and a tensor.
Prepare = Callable[[Sequence[Tensor | None], dict[str, Any]], dict[int, list[tuple[str, Tensor]]]]

EVERY: Collection[int] = range(1 << 16)


@dataclass(frozen=True)
class Operator:
    """How one operator is computed.

    Attributes:
        function: takes the inputs in order (None for omitted ones) and the attributes by name.
        since: the first version of the operators (opset) that it is right for.
        sizes: positions of inputs that are numbers on the host: shapes, axes, pads.
        scalars: positions of inputs that may be numbers if another input is a tensor.
        indices: positions of inputs that index another one; those with negative numbers are passed as numbers.
        weights: positions of inputs that are trained whatever their size.
        statistics: positions of inputs that are updated in training but not trained.
        folds: whether it computes on the host if all its inputs are there.
        many: whether it returns a tuple, one entry per output.
        prepare: turns the weights in the file into other weights.
    """

    function: Callable[..., Any]
    since: int = 1
    sizes: Collection[int] = ()
    scalars: Collection[int] = ()
    indices: Collection[int] = ()
    weights: Collection[int] = ()
    statistics: Collection[int] = ()
    folds: bool = False
    many: bool = False
    prepare: Prepare | None = None

    def unknown(self, attributes: Collection[str]) -> list[str]:
        """Return the attributes that the function does not take."""
        if not attributes:
            return []
        try:
            known = inspect.signature(self.function).parameters
        except ValueError:  # a built-in PyTorch function, which gets no attributes
            return list(attributes)
        return [
            name for name in attributes if name not in known or known[name].kind is not inspect.Parameter.KEYWORD_ONLY
        ]

    def takes(self, name: str) -> bool:
        """Return whether the function has a parameter of that name."""
        return self.many and name in inspect.signature(self.function).parameters


_OPERATORS: dict[str, list[Operator]] = {}


def register(name: str, function: Callable[..., Any], **how: Any) -> None:
    """Add an operator; ``how`` are the attributes of :class:`Operator`.

    Args:
        name: the operator's name, prefixed by its domain and two colons unless that is ONNX's own.
        function: what computes it.
    """
    found = _OPERATORS.setdefault(name, [])
    found.append(Operator(function, **how))
    found.sort(key=lambda operator: operator.since)


def operator(name: str, **how: Any) -> Callable[[Function], Function]:
    """:func:`register` as a decorator."""

    def add(function: Function) -> Function:
        register(name, function, **how)
        return function

    return add


def lookup(name: str, opset: int) -> Operator | None:
    """Return the operator as of a version of the operators, or None if it is unknown."""
    fitting = [found for found in _OPERATORS.get(name, ()) if found.since <= opset]
    return fitting[-1] if fitting else None
