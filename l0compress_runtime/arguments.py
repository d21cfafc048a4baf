"""Checks of what callers pass to a bundle, made before anything is computed and the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.errors import NOTHING_COMPUTED, NOTHING_LOADED, InputError
from l0compress_runtime.manifest import Port

Array = NDArray[Any]

MOST_THREADS = 1024


def path_of(path: Any) -> Path:
    """Return what is to be loaded as a path.

    Raises:
        InputError: it is not a path.

    Example:
        >>> path_of("model.l0c").name
        'model.l0c'
    """
    if not isinstance(path, str | PathLike) or not isinstance(fspath(path), str):
        raise InputError(
            f"the path of a bundle is {type(path).__name__}, but must be a string or a pathlib.Path.",
            fix="Pass the path of a file or of a folder.",
            assurance=NOTHING_LOADED,
        )
    return Path(path)


def whole_number(name: str, value: Any, most: int | None = None) -> int | None:
    """Check an option that counts something from 1; None, which leaves it open, stays None.

    Raises:
        InputError: it is not an integer, too small, or larger than ``most``.

    Example:
        >>> whole_number("threads", np.int64(2)), whole_number("threads", None)
        (2, None)
    """
    if value is None:
        return None
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < 1 or (most is not None and value > most):
        up_to = "" if most is None else f" to {most}"
        raise InputError(
            f"{name} is {value!r}, but must be an integer from 1{up_to}, or None.",
            fix="Pass such a number, or omit it.",
            assurance=NOTHING_LOADED,
        )
    return int(value)


def checks_of(ports: Sequence[Port]) -> Callable[[Any], dict[str, Array]]:
    """Return a function that checks the inputs of a run of a model with these ports and returns them as a dict.

    Every run pays for it, so whatever can be computed beforehand is. A dtype of the other byte order is a different
    dtype: ONNX Runtime would accept it and read the bytes in its own order.

    Raises:
        InputError: (by the function) they are not a mapping, not the model's inputs, or have another dtype or shape.

    Example:
        >>> check = checks_of([Port("x", "float32", ("batch", 3))])
        >>> check({"x": np.zeros((5, 3), np.float32)})["x"].shape
        (5, 3)
    """
    expected = [(port.name, np.dtype(port.dtype), len(port.shape), _fixed(port), port) for port in ports]

    def checked(inputs: Any) -> dict[str, Array]:
        values = inputs if type(inputs) is dict else _as_dict(inputs)
        if len(values) != len(expected):
            raise _other_names(ports, values)
        for name, dtype, dims, fixed, port in expected:
            try:
                array = values[name]
            except KeyError as error:
                raise _other_names(ports, values) from error
            if type(array) is not np.ndarray:
                values = _with_plain(values, port)
                array = values[name]
            if array.dtype != dtype:
                raise _misfit(array, port)
            shape = array.shape
            if len(shape) != dims:
                raise _misfit(array, port)
            for dim, size in fixed:
                if shape[dim] != size:
                    raise _misfit(array, port)
        return values

    return checked


def _with_plain(values: dict[str, Array], port: Port) -> dict[str, Array]:
    """Return the inputs with one of them as a plain numpy array: np.matrix, for one, slices differently."""
    if not isinstance(values[port.name], np.ndarray):
        raise _misfit(values[port.name], port)
    return {**values, port.name: np.asarray(values[port.name])}


def _fixed(port: Port) -> tuple[tuple[int, int], ...]:
    return tuple((dim, size) for dim, size in enumerate(port.shape) if isinstance(size, int))


def _as_dict(inputs: Any) -> dict[str, Array]:
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"the inputs of a run are {type(inputs).__name__}, but must be a dict of arrays by name.",
            fix='Pass {"name": array}; the names are in inputs of the bundle.',
            assurance=NOTHING_COMPUTED,
        )
    return dict(inputs)


def _other_names(ports: Sequence[Port], values: Mapping[Any, Any]) -> InputError:
    known, given = {port.name for port in ports}, set(values)
    return InputError(
        f"the model takes the inputs {_listed(known)}; missing {_listed(known - given)}, unexpected "
        f"{_listed(given - known)}.",
        fix="",
        assurance=NOTHING_COMPUTED,
    )


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def _misfit(array: Any, port: Port) -> InputError:
    found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    return InputError(
        f"input {port.name!r} is {found}, but the model takes {port.described()}.",
        fix="Pass an array of that dtype and shape.",
        assurance=NOTHING_COMPUTED,
    )
