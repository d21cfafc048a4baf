"""The outputs of two models in one call, compared one by one; the error says where they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from l0compress.errors import InputError, NotEqualError

# Relative to the largest magnitude of the reference output. Half precision carries 11 and 8 bits of mantissa.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class OutputEquality:
    """How closely one output agreed, over all calls.

    Attributes:
        name: dict key of the output, or ``output_<position>``.
        max_absolute: largest absolute difference.
        max_relative: ``max_absolute`` over the largest magnitude of the reference output in the same call; over that in
            all calls where the same call's happens to be too small to tell a difference from rounding.
        tolerance: what ``max_relative`` was allowed to be; 0 for integers and booleans.
        is_zero: the reference output was zero everywhere, in every call, so that its equality says little.
    """

    name: str
    max_absolute: float
    max_relative: float
    tolerance: float
    is_zero: bool


@dataclass(frozen=True)
class Measured:
    """One output in one call: how closely it agreed, and what is said if that is not enough.

    Attributes:
        equality: relative to the scale of this call.
        scale: the largest magnitude of the reference output.
        where: the place of the largest difference and the two values there; empty where there is none.
        inexact: whether it is made of numbers that are rounded.
    """

    equality: OutputEquality
    scale: float = 0.0
    where: str = ""
    inexact: bool = False


def check_tolerance(tolerance: float | None) -> None:
    """Raises:
    InputError: a tolerance that is no number, or one that would allow everything or nothing.
    """
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 <= float(tolerance) < math.inf:
        raise InputError(
            f"the tolerance {tolerance!r} is not a finite number of at least 0.",
            fix="Omit it for the dtype's default, or give a number such as 1e-5.",
            assurance="Nothing was changed and nothing was written.",
        )


def compare(
    small: dict[str, Any], dense: dict[str, Any], batch_size: int, tolerance: float | None = None
) -> list[OutputEquality]:
    """Compare two sets of named outputs of one call; ``dense`` is the reference.

    Python numbers count as scalars; a number of the reference that ``small`` does not have is passed over, since an
    artifact carries tensors only.

    Raises:
        NotEqualError: see :func:`verify`.
        InputError: likewise.

    Example:
        >>> compare({"y": torch.tensor([1.0, 2.0])}, {"y": torch.tensor([1.0, 2.0])}, 2)[0].max_absolute
        0.0
    """
    check_tolerance(tolerance)
    return [judged([output]) for output in measured(small, dense, batch_size, tolerance)]


def judged(calls: Sequence[Measured]) -> OutputEquality:
    """Judge one output by all calls.

    Rounding is relative to the terms of a sum, of which the result may be close to zero, as that of a regression is for
    some samples. Terms are not seen, but over several calls the output is about as large as they are. So a difference
    that is too large for its own call's scale is measured by that of all calls.

    Raises:
        NotEqualError: it differs by more than its tolerance.

    Example:
        >>> small = Measured(OutputEquality("y", 1e-8, 1e-2, 1e-5, False), scale=1e-6)
        >>> judged([small, Measured(OutputEquality("y", 0.0, 0.0, 1e-5, False), scale=2.0)]).max_relative
        5e-09
    """
    scale = max(call.scale for call in calls)
    found = [_by_scale(call.equality, scale) for call in calls]
    for call, output in zip(calls, found, strict=True):
        if output.max_relative > output.tolerance:
            raise refusal(
                f"output {output.name!r} differs {call.where}; that is {output.max_relative:.2e} of the output's "
                f"largest magnitude {scale:.4g}, the limit is {output.tolerance:.0e}",
                "Repeat the check in float64 to tell rounding from a real difference." if call.inexact else "",
            )
    return replace(
        found[0],
        max_absolute=max(output.max_absolute for output in found),
        max_relative=max(output.max_relative for output in found),
        is_zero=all(output.is_zero for output in found),
    )


def _by_scale(output: OutputEquality, scale: float) -> OutputEquality:
    if output.max_relative <= output.tolerance or not scale:
        return output
    return replace(output, max_relative=output.max_absolute / scale)


def measured(small: dict[str, Any], dense: dict[str, Any], batch_size: int, tolerance: float | None) -> list[Measured]:
    """Measure how far two sets of named outputs of one call are apart; for :func:`judged`.

    Raises:
        NotEqualError: names, shapes or dtypes differ, or NaN and infinity are in other places.
    """
    tensors = {name for name, value in dense.items() if isinstance(value, Tensor)}
    missing, extra = sorted(tensors - small.keys()), sorted(small.keys() - dense.keys())
    if missing or extra:
        raise refusal(
            f"the outputs have different names: missing {', '.join(missing) or 'none'}, "
            f"unexpected {', '.join(extra) or 'none'}"
        )
    if not tensors:
        raise refusal("the reference returns no tensor, so there is nothing to compare")
    return [
        _compare_tensors(name, torch.as_tensor(small[name]), torch.as_tensor(value), batch_size, tolerance)
        if isinstance(value, Tensor | bool | int | float)
        else _compare_values(name, small[name], value)
        for name, value in dense.items()
        if name in small
    ]


def _compare_values(name: str, small: Any, dense: Any) -> Measured:
    if small != dense:
        raise refusal(f"output {name!r} is {small!r}, expected {dense!r}")
    return Measured(OutputEquality(name, 0.0, 0.0, 0.0, False))


def _compare_tensors(name: str, small: Tensor, dense: Tensor, batch_size: int, tolerance: float | None) -> Measured:
    for what, got, expected in (("shape", tuple(small.shape), tuple(dense.shape)), ("dtype", small.dtype, dense.dtype)):
        if got != expected:
            raise refusal(f"output {name!r} has {what} {got}, expected {expected}, at batch size {batch_size}")
    inexact = dense.is_floating_point() or dense.is_complex()
    allowed = (TOLERANCES.get(dense.dtype, 1e-5) if tolerance is None else tolerance) if inexact else 0.0
    got, expected = _wide(small), _wide(dense)
    _check_nonfinite(name, got, expected, batch_size)
    finite = expected.isfinite()
    difference = torch.where(finite, got - expected, 0).abs().flatten()
    scale = float(torch.where(finite, expected, 0).abs().max()) if expected.numel() else 0.0
    largest = float(difference.max()) if difference.numel() else 0.0
    relative = largest / scale if scale else largest
    where = ""
    if relative > allowed:
        flat = int(difference.argmax())
        where = (
            f"at index {_index(flat, got)} for batch size {batch_size}: "
            f"{got.flatten()[flat].item():.8g}, expected {expected.flatten()[flat].item():.8g}"
        )
    return Measured(OutputEquality(name, largest, relative, allowed, scale == 0.0), scale, where, inexact)


def _wide(tensor: Tensor) -> Tensor:
    """A dtype in which the difference of two values of the tensor's dtype is exact, or as good as."""
    tensor = tensor.detach().cpu()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)


def _check_nonfinite(name: str, got: Tensor, expected: Tensor, batch_size: int) -> None:
    if expected.numel() and not bool(expected.isfinite().any()):
        raise refusal(
            f"output {name!r} of the reference holds no finite value at batch size {batch_size}, so that equality "
            "would mean nothing"
        )
    for what, places, others in (
        ("NaN", got.isnan(), expected.isnan()),
        ("infinity", got.isposinf(), expected.isposinf()),
        ("-infinity", got.isneginf(), expected.isneginf()),
    ):
        wrong = (places != others).flatten().nonzero()
        if len(wrong):
            raise refusal(
                f"output {name!r} has {what} in different places from the reference, first at index "
                f"{_index(int(wrong[0]), got)} for batch size {batch_size}"
            )


def _index(flat: int, tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), tensor.shape))


def refusal(reason: str, advice: str = "") -> NotEqualError:
    """The error for two models that are not equal."""
    return NotEqualError(
        f"The two models are not equal: {reason}. The result is refused and nothing was written. {advice}".rstrip()
    )
