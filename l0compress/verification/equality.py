"""Verification: two models compute the same function on the same inputs, or a :class:`NotEqualError` says where not.

requires: a reference (the dense model) and what must agree with it: a module, a captured graph, a loaded artifact.
ensures:  an :class:`Equality` with the largest differences that were seen; neither model is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from l0compress.errors import InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.progress import Stages
from l0compress.verification.calls import BATCH_SIZES, Call, example_calls, named_leaves
from l0compress.verification.comparison import Measured, OutputEquality, check_tolerance, judged, measured, refusal

Model: TypeAlias = "CapturedGraph | nn.Module | Callable[..., Any]"


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
        tolerance: largest difference relative to the largest magnitude of the reference output in the same call, or
            where that is too small, in all of them; by default 1e-10 for float64, 1e-5 for float32, 5e-3 for float16,
            4e-2 for bfloat16. Integers and booleans must be equal.
        rounded: the weights of ``small`` were rounded on purpose. An integer output, such as the class with the highest
            score, may then be another one; only its shape and dtype are compared.

    Raises:
        NotEqualError: an output is missing, has another shape or dtype, differs by more than the tolerance, has NaN or
            infinity in other places, or holds nothing finite to compare.
        InputError: no inputs to compare on, a module in training mode, or a tolerance that is not a finite number of at
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


def _equality(
    small: Model, dense: Model, inputs: Sequence[Call] | None, tolerance: float | None, *, rounded: bool
) -> Equality:
    calls = tuple(inputs) if inputs is not None else _default_calls(small, dense)
    if not calls:
        raise InputError("there are no inputs to compare the models on.", fix="Pass at least one Call.")
    run_small, run_dense = _runnable(small, "small"), _runnable(dense, "dense")
    seen: dict[str, list[Measured]] = {}
    stages = Stages([1] * len(calls))
    with torch.no_grad():
        for call in calls:
            with stages.stage(f"comparing at batch {call.batch_size}"):
                expected, got = named_leaves(_answer(run_dense, call)), named_leaves(_answer(run_small, call))
            if rounded:
                got = _with_integers_of(expected, got)
            for result in measured(got, expected, call.batch_size, tolerance):
                seen.setdefault(result.equality.name, []).append(result)
    return Equality(tuple(judged(results) for results in seen.values()), tuple(call.batch_size for call in calls))


def _default_calls(small: Model, dense: Model) -> tuple[Call, ...]:
    for side in (dense, small):
        if isinstance(side, CapturedGraph):
            return example_calls(side, BATCH_SIZES)
    raise InputError(
        "neither model is a captured graph, so there are no example inputs to compare on.",
        fix="Pass inputs=[Call((x,))].",
    )


def _runnable(model: Model, role: str) -> Callable[..., Any]:
    if isinstance(model, CapturedGraph):
        return model.module()
    if isinstance(model, nn.Module) and model.training:
        raise InputError(
            f"the {role} model ({type(model).__name__}) is in training mode, where dropout and batch norm make two "
            "runs differ.",
            fix="Call .eval() on it first.",
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
        raise refusal(
            "all outputs are integers, which say nothing about the size of a rounding",
            "Return scores beside them, or leave the weights as they are.",
        )
    return {**got, **excused}
