"""Convolutions of the numba engine: where each nonzero reads, computed once for each image size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.engines.inputs import conv_input
from l0compress_runtime.engines.threads import WORTH_A_THREAD, run_parts, split_evenly, split_rows
from l0compress_runtime.engines.workspace import PACKED_FLOATS, scratch
from l0compress_runtime.layers import SparseConv, matrix_shape

Array = NDArray[Any]
Pair = tuple[int, int]

# Fewer positions than these are better computed as one line, partly wasted, than shared or cut into whole tiles.
FEW_PLACES = 256

# Image sizes whose plans are kept; each plan has one offset per nonzero.
KEPT_PLANS = 16


@dataclass(frozen=True)
class Geometry:
    """A two-dimensional convolution; a one-dimensional one has images of height 1."""

    kernel: Pair
    stride: Pair
    before: Pair
    dilation: Pair
    image: Pair
    size: Pair  # of the output

    @staticmethod
    def of(layer: SparseConv, spatial: tuple[int, ...]) -> Geometry:
        """Return the geometry of a layer for an image of this size."""

        def pair(values: tuple[int, ...], missing: int) -> Pair:
            return (missing, values[0]) if len(values) == 1 else (values[0], values[1])

        return Geometry(
            pair(layer.kernel, 1),
            pair(layer.stride, 1),
            pair(tuple(begin for begin, _ in layer.padding), 0),
            pair(layer.dilation, 1),
            pair(spatial, 1),
            pair(layer.output_size(spatial), 1),
        )

    def phases(self) -> list[Pair]:
        """Return the first rows and columns of the phases of the stride that some kernel position reads."""
        rows, columns = (
            sorted({at * dilation % stride for at in range(kernel)})
            for kernel, dilation, stride in zip(self.kernel, self.dilation, self.stride, strict=True)
        )
        return list(product(rows, columns))

    def reach(self) -> Pair:
        """Return how many rows and columns of its phase the last kernel position is from the first."""
        down, across = (
            (kernel - 1) * dilation // stride
            for kernel, dilation, stride in zip(self.kernel, self.dilation, self.stride, strict=True)
        )
        return down, across


@dataclass(frozen=True)
class Plan:
    """How images of one size are convolved: by bands through a packed copy, or in place by spans if window is None."""

    image: tuple[int, ...]  # as the kernel takes it; positions that are each read alone form one line
    size: tuple[int, ...]  # of the output, likewise
    weights: tuple[Any, ...]
    window: tuple[Any, ...] | None
    span: int
    units: int  # bands or spans per image
    packed: int  # floats of scratch memory
    sums: int


@dataclass(frozen=True, eq=False)
class Planner:
    """Plans how images of one size are convolved; a kernel keeps its plans, but they do not keep the kernel."""

    layer: SparseConv
    kernels: ModuleType

    def plan(self, spatial: tuple[int, ...], threads: int) -> Plan:
        """Return the plan for images of this size, each of which is shared by this many threads."""
        layer, geometry = self.layer, Geometry.of(self.layer, spatial)
        places = prod(geometry.size)
        threads = threads if places >= threads * FEW_PLACES else 1
        if prod(layer.kernel) > 1 or prod(layer.stride) > 1 or np.any(layer.padding):
            return self._banded(geometry, threads)
        line = replace(geometry, image=(1, places), size=(1, places))
        return self._banded(line, threads) if places < FEW_PLACES else self._in_place(line, threads)

    def _in_place(self, line: Geometry, threads: int) -> Plan:
        _, places = line.size
        widest = self.kernels.WIDEST
        weights = self.weights(lambda channel, _row, _column: channel * places)
        span = min(-(-places // threads), max(PACKED_FLOATS // max(self.layer.channels, 1), widest))
        span = -(-span // widest) * widest
        return Plan((places,), (places,), weights, None, span, -(-places // span), 0, widest)

    def _banded(self, geometry: Geometry, threads: int) -> Plan:
        layer, phases, (down, across) = self.layer, geometry.phases(), geometry.reach()
        height, width = geometry.size
        images = max(layer.channels * len(phases), 1)
        columns = max(min(width, PACKED_FLOATS // (images * (1 + down)) - across), min(width, self.kernels.WIDEST))
        if height == 1:
            columns = min(columns, -(-width // threads))
        pitch = columns + across
        band = min(max(PACKED_FLOATS // (images * pitch) - down, 1), -(-height // threads))
        rows = band + down
        number = np.zeros(geometry.stride, np.int64)
        for at, phase in enumerate(phases):
            number[phase] = at

        def offset(channel: Array, row: Array, column: Array) -> Array:
            (high, wide), at = geometry.stride, (row * geometry.dilation[0], column * geometry.dilation[1])
            plane = channel * len(phases) + number[at[0] % high, at[1] % wide]
            return (plane * rows + at[0] // high) * pitch + at[1] // wide

        bands = (-(-height // band), -(-width // columns))
        window = self.kernels.Window(
            np.array(phases), rows, pitch, geometry.stride, geometry.before, (band, columns), bands
        )
        widest = self.kernels.WIDEST
        packed = images * rows * pitch + widest  # a last tile reads slightly beyond the last position
        sums = band * pitch + widest
        return Plan(geometry.image, geometry.size, self.weights(offset), tuple(window), 0, prod(bands), packed, sums)

    def weights(self, offset: Any) -> Any:
        """Return the weight with an offset into an image in place of each index."""
        layer = self.layer
        kernel_rows, kernel_columns = (1, *layer.kernel)[-2:]
        rows, columns = matrix_shape(layer.weight)
        group = np.repeat(np.arange(rows) // max(rows // layer.groups, 1), np.diff(layer.weight.indptr))
        channel, position = np.divmod(layer.weight.indices.astype(np.int64), kernel_rows * kernel_columns)
        channel += group * (columns // (kernel_rows * kernel_columns))
        offsets = offset(channel, position // kernel_columns, position % kernel_columns)
        weights = self.kernels.Weights(
            layer.weight.data,
            offsets.astype(np.int32 if offsets.max(initial=0) < 1 << 31 else np.int64),
            layer.weight.indptr.astype(np.int64),
            np.ones(rows, np.float32) if layer.scale is None else layer.scale,
            np.zeros(rows, np.float32) if layer.bias is None else layer.bias,
            self.kernels.NUMBERS[layer.activation],
        )
        return tuple(weights)


@dataclass(frozen=True)
class _Way:
    """How a batch of images is convolved: what depends on its shape, computed once."""

    plan: Plan
    threads: int
    parts: tuple[tuple[int, int, int, int], ...]
    outputs: tuple[int, ...]


def _way(layer: SparseConv, most_threads: int, plan: Callable[..., Plan], shape: tuple[int, ...]) -> _Way:
    """Return how to convolve a batch of this shape, with the plan that ``plan`` returns for its images."""
    images, spatial = shape[0], shape[2:]
    rows, _ = matrix_shape(layer.weight)
    size = layer.output_size(spatial)
    # About a fortieth of a nanosecond per nonzero and position.
    work = layer.weight.nnz * images * prod(size) // 40
    threads = min(most_threads, 1 + work // WORTH_A_THREAD)
    found = plan(spatial, -(-threads // max(images, 1)))
    units = found.units * images
    if not units or not rows:
        parts = []
    elif units >= threads:
        parts = [(*part, 0, rows) for part in split_evenly(units, threads, 1)]
    else:
        row_ranges = split_rows(layer.weight.indptr.astype(np.int64), -(-threads // units))
        parts = [(unit, unit + 1, *part) for unit in range(units) for part in row_ranges]
    return _Way(found, threads, tuple(parts), (images, rows, *size))


class NumbaConv:
    """The kernel of a convolution."""

    def __init__(self, layer: SparseConv, threads: int, kernels: ModuleType) -> None:
        self._layer, self._kernels = layer, kernels
        plan = lru_cache(maxsize=KEPT_PLANS)(Planner(layer, kernels).plan)
        self._way = lru_cache(maxsize=KEPT_PLANS)(partial(_way, layer, threads, plan))
        smallest = tuple((k - 1) * dilation + 4 for k, dilation in zip(layer.kernel, layer.dilation, strict=True))
        self(np.zeros((1, layer.channels, *smallest), np.float32))

    def __call__(self, x: Array) -> Array:
        x = conv_input(self._layer, x)
        way = self._way(x.shape)
        plan, y = way.plan, np.empty(way.outputs, np.float32)
        images, outputs = (array.reshape(*array.shape[:2], *size) for array, size in ((x, plan.image), (y, plan.size)))
        run = self._banded if plan.window is not None else self._in_place
        if len(way.parts) == 1:
            run(plan, images, outputs, way.parts[0])
        else:
            run_parts([partial(run, plan, images, outputs, part) for part in way.parts], threads=way.threads)
        return y

    def _in_place(self, plan: Plan, images: Array, outputs: Array, part: Any) -> None:
        _, sums = scratch(plan.packed, plan.sums)
        self._kernels.pointwise(plan.weights, images, part, plan.span, sums, outputs)

    def _banded(self, plan: Plan, images: Array, outputs: Array, part: Any) -> None:
        memory = scratch(plan.packed, plan.sums)
        self._kernels.convolve(plan.weights, images, part, plan.window, memory, outputs)
