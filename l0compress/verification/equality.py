"""Verification: two models compute the same function on the same inputs, or a :class:`NotEqualError` says where not.

requires: a reference (the dense model) and what must agree with it: a module, a captured graph, a loaded artifact.
ensures:  an :class:`Equality` with the largest differences that were seen; neither model is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from l0compress.errors import InputError, NotEqualError
from l0compress.graph.capture import CapturedGraph
from l0compress.verification.calls import BATCH_SIZES, Call, example_calls, named_leaves

Model: TypeAlias = "CapturedGraph | nn.Module | Callable[..., Any]"

# Relative to the largest magnitude of the reference output. Half precision carries 11 and 8 bits of mantissa.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class OutputEquality:
    """How closely one output agreed, over all calls.

    Attributes:
        name: dict key of the output, or ``output_<position>``.
        max_absolute: largest absolute difference.
        max_relative: ``max_absolute`` over the largest magnitude of the reference output in the same call.
        tolerance: what ``max_relative`` was allowed to be; 0 for integers and booleans.
        is_zero: the reference output was zero everywhere, in every call, so that its equality says little.
    """

    name: str
    max_absolute: float
    max_relative: float
    tolerance: float
    is_zero: bool


@dataclass(frozen=True)
class Equality:
    """Two models agreed. ``batch_sizes`` are those of the calls that were compared."""

    outputs: tuple[OutputEquality, ...]
    batch_sizes: tuple[int, ...]

    @property
    def max_absolute(self) -> float:
        """Largest absolute difference of any output."""
        return max(output.max_absolute for output in self.outputs)

    @property
    def max_relative(self) -> float:
        """Largest difference of any output, relative to that output's largest magnitude."""
        return max(output.max_relative for output in self.outputs)

    @property
    def zero_outputs(self) -> tuple[str, ...]:
        """Outputs that were zero everywhere in the reference."""
        return tuple(output.name for output in self.outputs if output.is_zero)

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        return (
            f"Equality({', '.join(output.name for output in self.outputs)}: largest difference {self.max_relative:.2g} "
            f"of the largest value; batch sizes {sizes})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {
            "equal": True,
            "max_absolute": self.max_absolute,
            "max_relative": self.max_relative,
            "batch_sizes": list(self.batch_sizes),
            "outputs": [asdict(output) for output in self.outputs],
        }


def verify(
    small: Model,
    dense: Model,
    *,
    inputs: Sequence[Call] | None = None,
    tolerance: float | None = None,
    rounded: bool = False,
) -> Equality:
    """Run both models on the same inputs and compare every output.

    Args:
        small: what must agree: a captured graph, a module in eval mode, or any callable (an ``OnnxSession``).
        dense: the reference, likewise.
        inputs: the calls to compare on; by default the example inputs of whichever side is a captured graph, and
            calls drawn from them at batch sizes 1 and 11.
        tolerance: largest difference relative to the largest magnitude of the reference output; by default 1e-10
            for float64, 1e-5 for float32, 5e-3 for float16, 4e-2 for bfloat16. Integers and booleans must be equal.
        rounded: the weights of ``small`` were rounded on purpose. An integer output, such as the class with the highest
            score, may then be another one; only its shape and dtype are compared.

    Raises:
        NotEqualError: an output is missing, has another shape or dtype, differs by more than the tolerance, has NaN or
            infinity in other places, or holds nothing finite to compare.
        InputError: no inputs to compare on, a module in training mode, or a tolerance that is no finite number of at
            least 0.

    Example:
        >>> import l0compress as l0
        >>> model = nn.Linear(4, 2).eval()
        >>> equality = verify(model, l0.capture(model, (torch.randn(2, 4),)))
        >>> equality.batch_sizes, equality.max_relative < 1e-6
        ((2, 1, 11), True)
    """
    check_tolerance(tolerance)
    return _equality(small, dense, inputs, tolerance, rounded=rounded)


def difference(small: Model, dense: Model, *, inputs: Sequence[Call] | None = None, rounded: bool = False) -> Equality:
    """How far two models are apart, whatever the difference of floats: as :func:`verify` without a tolerance."""
    return _equality(small, dense, inputs, math.inf, rounded=rounded)


def check_tolerance(tolerance: float | None) -> None:
    """Raises:
    InputError: a tolerance that is no number, or one that would allow everything or nothing.
    """
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 <= float(tolerance) < math.inf:
        raise InputError(
            f"the tolerance {tolerance!r} is no finite number of at least 0. Nothing was changed and nothing was "
            "written. Leave it out for that of the dtype, or give a number such as 1e-5."
        )


def _equality(
    small: Model, dense: Model, inputs: Sequence[Call] | None, tolerance: float | None, *, rounded: bool
) -> Equality:
    calls = tuple(inputs) if inputs is not None else _default_calls(small, dense)
    if not calls:
        raise InputError("there are no inputs to compare the models on. Nothing was changed. Pass at least one Call.")
    run_small, run_dense = _runnable(small, "small"), _runnable(dense, "dense")
    seen: dict[str, list[OutputEquality]] = {}
    with torch.no_grad():
        for call in calls:
            expected, got = named_leaves(_answer(run_dense, call)), named_leaves(_answer(run_small, call))
            if rounded:
                got = _with_integers_of(expected, got)
            for result in _compared(got, expected, call.batch_size, tolerance):
                seen.setdefault(result.name, []).append(result)
    return Equality(tuple(_merged(results) for results in seen.values()), tuple(call.batch_size for call in calls))


def _default_calls(small: Model, dense: Model) -> tuple[Call, ...]:
    for side in (dense, small):
        if isinstance(side, CapturedGraph):
            return example_calls(side, BATCH_SIZES)
    raise InputError(
        "neither model is a captured graph, so there are no example inputs to compare on. Nothing was changed. Pass "
        "inputs=[Call((x,))]."
    )


def _runnable(model: Model, role: str) -> Callable[..., Any]:
    if isinstance(model, CapturedGraph):
        return model.module()
    if isinstance(model, nn.Module) and model.training:
        raise InputError(
            f"the {role} model ({type(model).__name__}) is in training mode, where dropout and batch norm make two "
            "runs differ. Nothing was changed. Call .eval() on it first."
        )
    return model


def _answer(model: Callable[..., Any], call: Call) -> Any:
    copy = call.copy_for(model)
    return model(*copy.args, **copy.kwargs)


def _with_integers_of(expected: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """The outputs, with those of the reference in place of integers of the same shape and dtype.

    Raises:
        NotEqualError: there are only integers, so that nothing would be compared.
    """

    def is_excused(name: str) -> bool:
        mine, theirs = got.get(name), expected[name]
        if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor) or theirs.is_floating_point():
            return False
        return (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)

    excused = {name: value for name, value in expected.items() if is_excused(name)}
    if len(excused) == len(expected):
        raise _refusal(
            "all outputs are integers, which say nothing about the size of a rounding",
            "Return scores beside them, or leave the weights as they are.",
        )
    return {**got, **excused}


def _merged(results: list[OutputEquality]) -> OutputEquality:
    return OutputEquality(
        results[0].name,
        max(result.max_absolute for result in results),
        max(result.max_relative for result in results),
        results[0].tolerance,
        all(result.is_zero for result in results),
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
    return _compared(small, dense, batch_size, tolerance)


def _compared(
    small: dict[str, Any], dense: dict[str, Any], batch_size: int, tolerance: float | None
) -> list[OutputEquality]:
    tensors = {name for name, value in dense.items() if isinstance(value, Tensor)}
    missing, extra = sorted(tensors - small.keys()), sorted(small.keys() - dense.keys())
    if missing or extra:
        raise _refusal(
            f"the outputs have different names: missing {', '.join(missing) or 'none'}, "
            f"unexpected {', '.join(extra) or 'none'}"
        )
    if not tensors:
        raise _refusal("the reference returns no tensor, so there is nothing to compare")
    return [
        _compare_tensors(name, torch.as_tensor(small[name]), torch.as_tensor(value), batch_size, tolerance)
        if isinstance(value, Tensor | bool | int | float)
        else _compare_values(name, small[name], value)
        for name, value in dense.items()
        if name in small
    ]


def _compare_values(name: str, small: Any, dense: Any) -> OutputEquality:
    if small != dense:
        raise _refusal(f"output {name!r} is {small!r}, expected {dense!r}")
    return OutputEquality(name, 0.0, 0.0, 0.0, False)


def _compare_tensors(
    name: str, small: Tensor, dense: Tensor, batch_size: int, tolerance: float | None
) -> OutputEquality:
    for what, got, expected in (("shape", tuple(small.shape), tuple(dense.shape)), ("dtype", small.dtype, dense.dtype)):
        if got != expected:
            raise _refusal(f"output {name!r} has {what} {got}, expected {expected}, at batch size {batch_size}")
    inexact = dense.is_floating_point() or dense.is_complex()
    allowed = (TOLERANCES.get(dense.dtype, 1e-5) if tolerance is None else tolerance) if inexact else 0.0
    got, expected = _wide(small), _wide(dense)
    _check_nonfinite(name, got, expected, batch_size)
    finite = expected.isfinite()
    difference = torch.where(finite, got - expected, 0).abs().flatten()
    scale = float(torch.where(finite, expected, 0).abs().max()) if expected.numel() else 0.0
    largest = float(difference.max()) if difference.numel() else 0.0
    relative = largest / scale if scale else largest
    if relative > allowed:
        flat = int(difference.argmax())
        raise _refusal(
            f"output {name!r} differs at index {_index(flat, got)} for batch size {batch_size}: "
            f"{got.flatten()[flat].item():.8g}, expected {expected.flatten()[flat].item():.8g}; that is {relative:.2e} "
            f"of the output's largest magnitude {scale:.4g}, allowed is {allowed:.0e}",
            "Repeat the check in float64 to tell rounding from a real difference." if inexact else "",
        )
    return OutputEquality(name, largest, relative, allowed, scale == 0.0)


def _wide(tensor: Tensor) -> Tensor:
    """A dtype in which the difference of two values of the tensor's dtype is exact, or as good as."""
    tensor = tensor.detach().cpu()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)


def _check_nonfinite(name: str, got: Tensor, expected: Tensor, batch_size: int) -> None:
    if expected.numel() and not bool(expected.isfinite().any()):
        raise _refusal(
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
            raise _refusal(
                f"output {name!r} has {what} in other places than the reference, first at index "
                f"{_index(int(wrong[0]), got)} for batch size {batch_size}"
            )


def _index(flat: int, tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), tensor.shape))


def _refusal(reason: str, advice: str = "") -> NotEqualError:
    return NotEqualError(
        f"The two models are not equal: {reason}. The result is refused and nothing was written. {advice}".rstrip()
    )
