"""What the label pass knows of a tensor: its shape and its planes.

A *plane* is an int64 tensor of the value's shape that names, for every element, the label it belongs to; dimensions
along which the label does not vary have stride 0, so a plane costs what it says and not what the activation weighs.
An element is alive where the label of every plane is alive. Planes of one value never share a dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Value:
    """The shape and the planes of one tensor; no planes means that nothing of it can be removed."""

    shape: Shape
    planes: tuple[Tensor, ...] = ()

    def plane_along(self, dim: int) -> Tensor | None:
        """The plane that varies along ``dim``, if there is one."""
        return next((plane for plane in self.planes if dim in varying(plane)), None)

    def mapped(self, move: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Value:
        """The value after a pure data movement, which is run on the labels themselves."""
        return Value(tuple(shape), tuple(compressed(move(plane)) for plane in self.planes))


def varying(plane: Tensor) -> frozenset[int]:
    """The dimensions along which the labels of a plane differ.

    Examples:
        >>> import torch
        >>> sorted(varying(along(torch.arange(3), 1, (2, 3, 4))))
        [1]
    """
    return frozenset(
        d for d, (size, step) in enumerate(zip(plane.shape, plane.stride(), strict=True)) if size > 1 and step
    )


def core(plane: Tensor) -> Tensor:
    """The plane with every constant dimension narrowed to 1.

    Examples:
        >>> import torch
        >>> core(along(torch.arange(3), 1, (2, 3, 4))).shape
        torch.Size([1, 3, 1])
    """
    for d, (size, step) in enumerate(zip(plane.shape, plane.stride(), strict=True)):
        if size > 1 and step == 0:
            plane = plane.narrow(d, 0, 1)
    return plane


def compressed(plane: Tensor) -> Tensor:
    """The same labels, with stride 0 along every dimension where they are constant."""
    small = core(plane)
    for d in range(small.dim()):
        if small.shape[d] > 1 and bool((small.narrow(d, 0, 1) == small).all()):
            small = small.narrow(d, 0, 1)
    return small.expand(plane.shape)


def along(labels: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """A plane of ``shape`` whose label depends on the index along ``dim`` alone."""
    view = [1] * len(shape)
    view[dim] = labels.numel()
    return labels.reshape(view).expand(tuple(shape))


def lifted(value: Value, shape: Sequence[int]) -> tuple[Value, frozenset[int]]:
    """A value broadcast to ``shape``, and the dimensions along which it was stretched."""
    rank = len(shape)
    old = (1,) * (rank - len(value.shape)) + value.shape
    stretched = frozenset(d for d in range(rank) if old[d] == 1 and shape[d] > 1)
    planes = tuple(
        core(plane).reshape((1,) * (rank - plane.dim()) + core(plane).shape).expand(tuple(shape))
        for plane in value.planes
    )
    return Value(tuple(shape), planes), stretched


def narrowed(plane: Tensor, dim: int) -> Tensor:
    """The plane without ``dim``, along which it does not vary."""
    return plane.narrow(dim, 0, 1).squeeze(dim)


def flattened(plane: Tensor) -> Tensor:
    """The labels of a plane as one vector, constant dimensions left out."""
    return core(plane).reshape(-1)


def as_matrix(plane: Tensor, rows: frozenset[int]) -> Tensor:
    """The plane as a matrix: dimensions in ``rows`` against all other varying ones."""
    small = core(plane)
    columns = [d for d in range(small.dim()) if d not in rows]
    first = sorted(rows)
    count = 1
    for d in first:
        count *= small.shape[d]
    return small.permute(*first, *columns).reshape(count, -1)
