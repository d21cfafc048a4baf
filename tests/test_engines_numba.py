"""The loops of the numba engine stay within their arrays: they check no bounds, so what lies behind is looked at."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import pytest
from sparse_layers import noise, recurrent_layer, sparse_matrix

from l0compress_runtime.engines import numba_engine
from l0compress_runtime.engines.numba_convolution import Planner
from l0compress_runtime.layers import GATES, SparseConv, SparseLinear
from l0compress_runtime.recurrence import directions_of
from l0compress_runtime.reference import recurrent_reference, reference

numba = pytest.importorskip("numba", exc_type=ImportError)
kernels = pytest.importorskip("l0compress_runtime.engines.numba_kernels", exc_type=ImportError)
make_dot = pytest.importorskip("l0compress_runtime.engines.numba_simd", exc_type=ImportError).make_dot

FENCE = 64


class Fenced:
    """An array of a shape with sentinels before and behind it."""

    def __init__(self, *shape: int) -> None:
        size = int(np.prod(shape))
        self._memory = np.full(size + 2 * FENCE, 123.0, np.float32)
        self.array = self._memory[FENCE : FENCE + size].reshape(shape)

    def is_intact(self) -> bool:
        return bool((self._memory[:FENCE] == 123).all() and (self._memory[-FENCE:] == 123).all())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def holding(values: np.ndarray) -> Any:
    """A copy of the values between sentinels that no sum survives."""
    fenced = Fenced(*values.shape)
    fenced.array[...] = values
    return fenced.array


@pytest.mark.parametrize("width", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("columns", [1, 3, 4, 7, 8, 16, 17, 30, 33])
def test_a_batch_is_packed_and_unpacked_within_bounds(rng, width, columns):
    for count in {1, 2, width - 1, width}:
        x = holding(noise(rng, count + 5, columns))
        packed, back = Fenced(columns * width), Fenced(count + 5, columns)
        kernels.pack_(x, 3, count, width, packed.array)
        repeated = x[3 + np.minimum(np.arange(width), count - 1)]
        used = width if width <= 16 else -(-count // 16) * 16
        np.testing.assert_array_equal(packed.array.reshape(columns, width)[:, :used], repeated[:used].T)
        kernels.unpack_(packed.array, width, back.array, 3, count, (0, columns))
        np.testing.assert_array_equal(back.array[3 : 3 + count], x[3 : 3 + count])
        assert (back.array[:3] == 123).all() and (back.array[3 + count :] == 123).all()
        assert packed.is_intact() and back.is_intact()


@pytest.mark.parametrize("made", ["intrinsic", "plain"])
@pytest.mark.parametrize("values", [np.float32, np.int8])
@pytest.mark.parametrize("indices", [np.uint16, np.int32, np.int64])
def test_one_sample_is_multiplied_alike_on_every_processor(rng, made, values, indices):
    dot = make_dot() if made == "intrinsic" else kernels.plain_dot

    @numba.njit
    def product(weights, x, y):
        held = kernels.Weights(*weights)
        for row in range(len(y)):
            y[row] = dot(held, row, x)

    counts = np.array([0, 1, 3, 4, 15, 16, 17, 33, 70])
    starts = np.concatenate([[0], np.cumsum(counts)])
    # Read from both ends of the sample, and nowhere beyond.
    columns = np.concatenate([rng.permutation(100)[:count] for count in counts])
    weight = (noise(rng, int(starts[-1])) * 100).astype(values)
    scale, bias = noise(rng, len(counts)), noise(rng, len(counts))
    x, y = holding(noise(rng, 100)), Fenced(len(counts))
    product((weight, columns.astype(indices), starts, scale, bias, 0), x, y.array)
    rows = [weight[a:b].astype(np.float64) @ x[columns[a:b]] for a, b in pairwise(starts)]
    np.testing.assert_allclose(y.array, np.array(rows) * scale + bias, rtol=1e-5, atol=1e-3)
    assert y.is_intact()


@pytest.mark.parametrize("rows", [1, 5, 64, 70])
@pytest.mark.parametrize("batch", [1, 2, 13, 40, 70])
def test_a_product_writes_its_part_of_the_output_alone(rng, rows, batch):
    layer = SparseLinear(sparse_matrix(rng, (rows + 7, 21), 0.5))
    x, y = holding(noise(rng, batch + 2, 21)), Fenced(batch + 2, rows + 7)
    packed, sums = Fenced(21 * 64), Fenced(64 * 64)
    part = (1, 1 + batch, 3, 3 + rows)
    memory = (packed.array, sums.array)
    kernels.batch_product(numba_engine._weights(layer, kernels), x, part, False, memory, y.array)
    expected = np.full(y.array.shape, 123.0)
    expected[1 : 1 + batch, 3 : 3 + rows] = reference(layer, x)[1 : 1 + batch, 3 : 3 + rows]
    np.testing.assert_allclose(y.array, expected, rtol=1e-5, atol=1e-5)
    assert y.is_intact() and packed.is_intact() and sums.is_intact()


@pytest.mark.parametrize("batch", [2, 8, 13, 33, 64, 70, 96])
def test_parts_that_one_thread_runs_share_what_it_packed_and_nothing_else(monkeypatch, rng, batch):
    monkeypatch.setattr(numba_engine, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(numba_engine, "run_parts", lambda parts, **_: [part() for part in parts])
    layer = SparseLinear(sparse_matrix(rng, (70, 21), 0.5))
    kernel = numba_engine.NumbaEngine().compile(layer, threads=3)
    for x in (noise(rng, batch, 21), noise(rng, batch, 21)):
        np.testing.assert_allclose(kernel(x), reference(layer, x), rtol=1e-5, atol=1e-5)


def test_an_array_that_cannot_be_written_is_no_reason_to_compile_anew(rng):
    linear = numba_engine.NumbaEngine().compile(SparseLinear(sparse_matrix(rng, (70, 21), 0.5)), threads=1)
    conv = numba_engine.NumbaEngine().compile(SparseConv(sparse_matrix(rng, (6, 4 * 9), 0.7), (3, 3)), threads=1)
    compiled = [kernels.vector_product, kernels.batch_product, kernels.convolve]
    before = [len(kernel.signatures) for kernel in compiled]
    for kernel, shape in ((linear, (1, 21)), (linear, (5, 21)), (conv, (2, 4, 9, 9))):
        x = noise(rng, *shape)
        x.flags.writeable = False
        kernel(x)
    assert [len(kernel.signatures) for kernel in compiled] == before


@pytest.mark.parametrize("places", [4, 5, 63, 64, 67, 100, 129])
@pytest.mark.parametrize("span", [64, 128])
def test_images_read_in_place_are_not_left(rng, places, span):
    layer = SparseConv(sparse_matrix(rng, (6, 5), 0.7), (1,))
    weights = Planner(layer, kernels).weights(lambda channel, _row, _column: channel * places)
    x, y, sums = holding(noise(rng, 2, 5, places)), Fenced(2, 6, places), Fenced(64)
    kernels.pointwise(weights, x, (0, 2 * -(-places // span), 0, 6), span, sums.array, y.array)
    np.testing.assert_allclose(y.array, reference(layer, x), rtol=1e-5, atol=1e-5)
    assert y.is_intact() and sums.is_intact()


@pytest.mark.parametrize("size", [(5, 5), (9, 12), (17, 3), (20, 40)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_bands_stay_in_their_scratch_memory(monkeypatch, rng, size, stride):
    layer = SparseConv(sparse_matrix(rng, (6, 4 * 9), 0.7), (3, 3), stride=stride, padding=((1, 1), (1, 1)))
    monkeypatch.setattr("l0compress_runtime.engines.numba_convolution.PACKED_FLOATS", 700)
    plan = Planner(layer, kernels).plan(size, 1)
    assert plan.units > 1 or prod(size) < 200
    packed, sums = Fenced(plan.packed), Fenced(plan.sums)
    x, y = holding(noise(rng, 2, 4, *size)), Fenced(2, 6, *plan.size)
    kernels.convolve(plan.weights, x, (0, 2 * plan.units, 0, 6), plan.window, (packed.array, sums.array), y.array)
    np.testing.assert_allclose(y.array, reference(layer, x), rtol=1e-5, atol=1e-5)
    assert y.is_intact() and packed.is_intact() and sums.is_intact()


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("units", [1, 5, 16, 19])
@pytest.mark.parametrize("batch", [1, 2, 13, 40, 70])
def test_the_steps_of_a_sequence_stay_in_their_range_of_the_batch(rng, cell, units, batch):
    loops = pytest.importorskip("l0compress_runtime.engines.numba_recurrent_kernels", exc_type=ImportError)
    layer = recurrent_layer(rng, cell, "bidirectional", (7, units))
    direction = directions_of(layer)[1]
    rows = GATES[cell] * units
    x = noise(rng, 3, batch + 3, 7)
    projected = holding(reference(direction.input, x).astype(np.float32))
    y, states = Fenced(3, 2, batch + 3, units), [Fenced(2, batch + 3, units) for _ in range(2)]
    for state in states:
        state.array[1, 2 : 2 + batch] = 0
    memory = [Fenced(width * 64) for width in (units, units, rows, rows)]
    loops.recur(
        numba_engine._weights(direction.recurrent, kernels),
        loops.CELLS[cell],
        (2, 2 + batch, 1, True),
        projected,
        tuple(fence.array for fence in memory),
        tuple(state.array for state in states),
        y.array,
    )
    expected = np.full(y.array.shape, 123.0)
    made = recurrent_reference(layer, x)
    expected[:, 1, 2 : 2 + batch] = made[0][:, 1, 2 : 2 + batch]
    np.testing.assert_allclose(y.array, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(states[0].array[1, 2 : 2 + batch], made[1][1, 2 : 2 + batch], rtol=1e-5, atol=1e-5)
    assert (states[0].array[0] == 123).all() and (states[1].array[1, :2] == 123).all()
    assert all(fence.is_intact() for fence in (y, *states, *memory))
