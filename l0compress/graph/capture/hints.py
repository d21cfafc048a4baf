"""What the user says of the sizes of each input: nothing, where its batch is, which sizes are free, or that none is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim

from l0compress.errors import CaptureError

KINDS = ("auto", "batch", "batch+sequence")
# An input of which nothing is said.
UNSAID = "unsaid"
# The name of a Dim that says which one the batch is.
BATCH = "batch"

# For each input: the dimension of its batch; or its free sizes by dimension; None where all are fixed; or UNSAID.
Hint = int | Mapping[int, Any] | str | None

# What torch.export takes as a size: a named one, a hint such as Dim.AUTO, a number, or None for a fixed one.
_SIZES = (Dim, type(Dim.AUTO), int, type(None))


def hints_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Any) -> list[Hint]:
    """What ``dynamic`` says of each input, leaf by leaf of ``(args, kwargs)``.

    Raises:
        CaptureError: the inputs do not fit the model's forward, or ``dynamic`` does not fit the inputs.

    Examples:
        >>> import torch
        >>> state = torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)
        >>> hints_of(nn.LSTM(4, 8), (torch.zeros(5, 2, 4), state), {}, {"input": 1, "hx": (1, None)})
        [1, 1, None]
    """
    if dynamic is None:
        return [None] * len(pytree.tree_leaves((args, dict(kwargs))))
    values = _named_inputs(model, args, kwargs)
    if not isinstance(dynamic, Mapping):
        if not isinstance(dynamic, str) or dynamic not in KINDS:
            raise _unfit(repr(dynamic))
        return [UNSAID for _, value in values for _ in pytree.tree_leaves(value)]
    names = list(dict.fromkeys(name.partition("[")[0] for name, _ in values))
    unknown = [name for name in dynamic if name not in names]
    if unknown:
        raise CaptureError(
            f"dynamic={dict(dynamic)!r} names the input {unknown[0]!r}, but the model is called with "
            f"{', '.join(map(repr, names)) or 'none'}.",
            fix="Use those names.",
        )
    given = {name: _entry(dynamic, name) for name, _ in values}
    # Who says where the batch of one input is has not said that all others are fixed.
    places = any(type(leaf) is int for entry in given.values() for leaf in pytree.tree_leaves(entry, is_leaf=_is_dims))
    unnamed = UNSAID if places else None
    spread = [_spread(name, value, unnamed if given[name] is _ABSENT else given[name]) for name, value in values]
    return [hint for hints in spread for hint in hints]


def named_batch(hint: Hint) -> int | None:
    """The dimension whose size is a ``Dim`` of the name ``batch``.

    >>> named_batch({0: Dim("length"), 1: Dim("batch")}), named_batch({0: Dim.AUTO}), named_batch(1)
    (1, None, None)
    """
    sizes = hint.items() if isinstance(hint, Mapping) else ()
    return next((dim for dim, size in sizes if isinstance(size, Dim) and size.__name__ == BATCH), None)


_ABSENT = object()


def _entry(dynamic: Mapping[str, Any], name: str) -> Any:
    """What is said of an input; of one among ``*args``, what stands in its place in the tuple."""
    base, _, place = name.partition("[")
    given = dynamic.get(base, _ABSENT)
    if not place or given is None or given is _ABSENT or type(given) is int:
        return given
    position = int(place[:-1])
    if not isinstance(given, tuple | list):
        raise _unfit(f"{{{base!r}: {given!r}}}, where *{base} takes a tuple with one entry per input")
    return given[position] if position < len(given) else None


def _spread(name: str, value: Any, given: Any) -> list[Hint]:
    """What is said of one input, for each tensor in it."""
    leaves = pytree.tree_leaves(value)
    if given is None or given is UNSAID:
        return [given] * len(leaves)
    if type(given) is int:
        fits = [isinstance(leaf, Tensor) and 0 <= given < leaf.dim() for leaf in leaves]
        if not any(fits):
            raise _unfit(_said(name, value, given))
        return [given if fit else UNSAID for fit in fits]
    if isinstance(value, Tensor):
        return [_dims(name, value, given)]
    parts = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)[0]
    if isinstance(value, Mapping) and isinstance(given, Mapping) and set(given) <= set(value):
        entries = [given.get(key) for key in value]
    elif isinstance(given, tuple | list) and len(given) == len(parts):
        entries = list(given)
    else:
        raise _unfit(_said(name, value, given))
    return [hint for part, entry in zip(parts, entries, strict=True) for hint in _spread(name, part, entry)]


def _dims(name: str, value: Tensor, given: Any) -> Mapping[int, Any]:
    dims = dict(given) if isinstance(given, Mapping) else {}
    fits = [type(dim) is int and dim < value.dim() and isinstance(size, _SIZES) for dim, size in dims.items()]
    if not isinstance(given, Mapping) or not all(fits) or min(dims, default=0) < 0:
        raise _unfit(_said(name, value, given))
    return dims


def _is_dims(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(dim) is int for dim in value)


def _said(name: str, value: Any, given: Any) -> str:
    held = f"{value.dim()} dimensions" if isinstance(value, Tensor) else f"the form of a {type(value).__name__}"
    return f"{{{name!r}: {given!r}}}, where the input has {held}"


def _unfit(given: str) -> CaptureError:
    return CaptureError(
        f"dynamic={given}: expected {', '.join(map(repr, KINDS))}, None, or a dict of inputs by name: of each the "
        "dimension of its batch, {'x': 0}, or all its free sizes, {'x': {0: torch.export.Dim.AUTO}}, dimensions "
        "counted from 0.",
        fix="",
    )


def _named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The inputs in the order of the call, with their names; those of ``*args`` are ``args[0]``, ``args[1]``."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}.",
            fix="Pass them as in a call of the model.",
        ) from error
    named: list[tuple[str, Any]] = []
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            raise CaptureError(
                f"{type(model).__name__}.forward takes {', '.join(map(repr, value))} through **{name}, where "
                "torch.export cannot leave sizes free.",
                fix="Wrap the model in a module whose forward names its inputs, or pass dynamic=None to fix all sizes.",
            )
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named += [(f"{name}[{position}]", part) for position, part in enumerate(value)]
        elif name not in kwargs:
            named.append((name, value))
    return [*named, *kwargs.items()]
