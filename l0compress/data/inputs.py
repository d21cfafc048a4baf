"""The inputs of a call: tensors that the samples lead, and constants beside them, in tuples and dicts to any depth.

A constant is a number, or a tensor of no dimensions: the same for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from l0compress.data.tensors import as_tensor, is_array


@dataclass(frozen=True)
class Place:
    """Where a tensor or a number is among the inputs: that of position or name ``key``, and how to get to it there.

    >>> str(Place(1, "[0]")), Place("state", "['h']").label
    ('1[0]', "input 'state'['h']")
    """

    key: int | str
    path: str = ""

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"input {self.key!r}{self.path}"

    def __str__(self) -> str:
        return f"{self.key}{self.path}"


def places_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Place, Any]:
    """Every tensor and number of a call by its place, in the order of the call.

    >>> [str(place) for place in places_of((1.0, (2.0, 3.0)), {"scale": 4.0})]
    ['0', '1[0]', '1[1]', 'scale']
    """
    named = (*enumerate(args), *kwargs.items())
    return {
        Place(key, pytree.keystr(path)): leaf
        for key, value in named
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
    }


def has_samples(leaf: Any) -> bool:
    """Whether it has a row for each sample: a tensor with dimensions; all else is a constant."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def is_number(value: Any) -> bool:
    """Whether it is a number of Python."""
    return isinstance(value, int | float)


def is_nested(value: Any, count: int | None = None) -> bool:
    """Whether it holds inputs of its own: a dict, or a tuple with arrays somewhere in it.

    A list holds the rows of one input. In a batch of ``count`` samples it may be what a ``DataLoader`` makes of a
    tuple: it is, where each of its arrays has that many rows.

    >>> import torch
    >>> state = torch.zeros(2, 1, 3), torch.zeros(2, 1, 3)
    >>> is_nested(state), is_nested(list(state)), is_nested(list(state), 2), is_nested((0.5, 1.5))
    (True, False, True, False)
    """
    if isinstance(value, Mapping):
        return bool(value)
    if isinstance(value, tuple):
        return any(is_array(part) or is_nested(part, count) for part in value)
    if count is None or not isinstance(value, list) or not value:
        return False
    return all(_has_rows(part, count) for part in value)


def _has_rows(part: Any, count: int) -> bool:
    return len(part) == count if is_array(part) and part.ndim > 0 else is_nested(part, count)


def as_input(value: Any, what: str, count: int | None = None) -> Any:
    """An input as a tensor, or a tuple or dict of such; a number of Python stays one.

    Args:
        value: arrays, tensors, numbers or rows of them, nested as :func:`is_nested` says.
        what: what messages call it.
        count: samples, where it is one of a batch.

    >>> import numpy as np
    >>> as_input((np.arange(2), {"scale": 0.5}), "input 0")
    (tensor([0, 1]), {'scale': 0.5})

    Raises:
        DataError: as :func:`~l0compress.data.tensors.as_tensor` says.
    """
    if is_number(value):
        return value
    if not is_nested(value, count):
        return as_tensor(value, what)
    if isinstance(value, Mapping):
        return {str(key): as_input(part, f"{what}[{key!r}]", count) for key, part in value.items()}
    return tuple(as_input(part, f"{what}[{at}]", count) for at, part in enumerate(value))


@dataclass(frozen=True, eq=False)
class Form:
    """How a model is called: example inputs, and leaf by leaf of ``(args, kwargs)`` the dimension of the batch."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch_dims: tuple[int | None, ...]

    @property
    def is_flat(self) -> bool:
        """Whether it is tensors alone, none of them a constant or within another container."""
        return all(has_samples(value) for value in (*self.args, *self.kwargs.values()))

    def filled(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs in this form: the constants that they lack are the example's, and containers are of its types.

        >>> import torch
        >>> x = torch.zeros(2, 3)
        >>> Form((x, 0.5), {"shift": 1}, (0, None, None)).filled((x,), {})[0][1:], Form((x,), {}, (0,)).filled((), {})
        ((0.5,), ((), {}))
        """
        constant = [_is_constant(value) for value in self.args]
        if len(args) == constant.count(False) < len(self.args):
            given = iter(args)
            args = tuple(value if same else next(given) for value, same in zip(self.args, constant, strict=True))
        lacking = {name: value for name, value in self.kwargs.items() if name not in kwargs and _is_constant(value)}
        named = {**kwargs, **lacking} if args or kwargs else {}
        if len(args) != len(self.args) or named.keys() != self.kwargs.keys():
            return args, named
        leaves, spec = pytree.tree_flatten((args, {name: named[name] for name in self.kwargs}))
        own = pytree.tree_structure((self.args, dict(self.kwargs)))
        return pytree.tree_unflatten(leaves, own if own.num_leaves == spec.num_leaves else spec)


def _is_constant(value: Any) -> bool:
    return not any(map(has_samples, pytree.tree_leaves(value)))
