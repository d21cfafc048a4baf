"""What the builder knows of a value in the file before the model runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from l0compress.loading.onnx.parsed import Node
from l0compress.loading.onnx.registry import Operator
from l0compress.loading.onnx.values import MOST_ON_HOST, as_tensor

# Lists of sizes and factors are no longer than this; a longer list of floating-point numbers is a weight.
_FEW = 8
# Operators that move their input and create nothing new.
_KEEPS_ZEROS = frozenset(
    {"Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
     "Unsqueeze"}
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Known:
    """A value known before the model runs.

    Attributes:
        tensor: the value.
        name: its name in the file.
        trained: whether it may become a parameter.
    """

    tensor: Tensor
    name: str
    trained: bool

    @property
    def fits_host(self) -> bool:
        """Whether it can take part in size arithmetic."""
        return self.tensor.numel() <= (_FEW if self.tensor.is_floating_point() else MOST_ON_HOST)

    @property
    def zeros(self) -> bool:
        return not self.tensor.any()

    @property
    def literal(self) -> Any:
        return _nested(self.tensor.tolist())


@dataclass(frozen=True, eq=False)
class Flow:
    """A value that a call computes.

    Attributes:
        node: the call.
        perhaps_host: whether it may be on the host, since only sizes went into it.
        constant: computes it now, if only weights went into it.
        zeros: whether it is certain to be all zeros.
    """

    node: fx.Node
    perhaps_host: bool
    constant: Callable[[], Tensor] | None = None
    zeros: bool = False


Value = Known | Flow | None


def _nested(value: Any) -> Any:
    return tuple(_nested(item) for item in value) if isinstance(value, list) else value


def makes_zeros(found: Operator, node: Node, given: list[Value]) -> bool:
    if node.operator == "ConstantOfShape":
        return not node.attributes.get("value", 0)
    moved = [v for position, v in enumerate(given) if v and position not in {*found.sizes, *found.indices}]
    return node.operator in _KEEPS_ZEROS and all(value.zeros for value in moved)


def value_now(value: Value) -> Tensor | None:
    """Return a value if it is known or can be computed now."""
    if isinstance(value, Known):
        return value.tensor
    return None if value is None or value.constant is None else value.constant()


def result_of(compute: Callable[[], Any], position: int | None) -> Tensor:
    results = compute()
    return as_tensor(results if position is None else results[position])


def has_negative(tensor: Tensor) -> bool:
    return bool((tensor < 0).any())


def is_size(value: Known | Flow | None) -> bool:
    """Return whether a value is certain to be a size rather than a weight."""
    return (
        isinstance(value, Known)
        and value.fits_host
        and (not value.tensor.is_floating_point() or value.tensor.numel() <= 1)
    )


def stays_on_host(found: Operator, given: list[Value]) -> bool:
    """Return whether a call may result in sizes: if a table meets free sizes, the result is a tensor."""
    data = [value for position, value in enumerate(given) if value is not None and position not in found.sizes]
    free = any(isinstance(value, Flow) for position, value in enumerate(given) if position in found.sizes)
    known = [value for value in data if isinstance(value, Known)]
    flows = [value for value in data if isinstance(value, Flow)]
    return all(v.fits_host for v in known) and all(v.perhaps_host for v in flows) and not (free and known)
