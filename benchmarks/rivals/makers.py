"""Which project a method is of, and what makes its models."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from quality.cells import ONNXSIM, TORCH_PRUNING, Cell
from quality.problem import Problem

from rivals import with_onnxsim, with_torch_pruning
from rivals.made import Made

_DISTRIBUTIONS = {**dict.fromkeys(TORCH_PRUNING, "torch-pruning"), ONNXSIM: "onnxsim"}


def made_by(method: str) -> Callable[[Cell, Problem], Made]:
    """What makes the model of a cell of this method."""
    return with_onnxsim.make if method == ONNXSIM else with_torch_pruning.make


def versions(method: str) -> str:
    """The project that a method is of, with its version; empty for our own."""
    name = _DISTRIBUTIONS.get(method)
    return "" if name is None else f"{name} {version(name)}"


def missing(method: str) -> str | None:
    """Why a method cannot run here, or None.

    >>> missing("l0") is None
    True
    """
    try:
        versions(method)
    except PackageNotFoundError:
        return f"{_DISTRIBUTIONS[method]} is not installed: make bench-quality RIVALS=all"
    return None
