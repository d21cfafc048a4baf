"""Recurrent layers: every engine computes what ONNX's operators say, by a loop in float64 and by ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sparse_layers import DTYPES, noise, onnxruntime_recurrent, recurrent_layer

from l0compress.errors import InputError
from l0compress_runtime.engines import find
from l0compress_runtime.layers import DIRECTIONS, GATES, SparseRecurrent
from l0compress_runtime.reference import recurrent_reference

ENGINES = [engine for engine in find() if engine.name != "torch"]
by_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
by_cell = pytest.mark.parametrize("cell", GATES)
by_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def assert_same(actual: Any, expected: Any) -> None:
    assert len(actual) == len(expected)
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == np.float32
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def states_of(rng: np.random.Generator, layer: SparseRecurrent, batch: int) -> list[np.ndarray]:
    return [noise(rng, layer.directions, batch, layer.hidden) for _ in range(layer.states)]


@by_cell
@by_direction
@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("given", [False, True])
def test_the_reference_is_onnx_runtimes_operator(rng, cell, direction, length, given):
    layer = recurrent_layer(rng, cell, direction, (9, 14))
    x, states = noise(rng, length, 3, 9), states_of(rng, layer, 3) if given else ()
    for made, expected in zip(
        recurrent_reference(layer, x, *states), onnxruntime_recurrent(layer, x, *states), strict=True
    ):
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@by_engine
@by_cell
@by_direction
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_cell_and_direction_at_any_batch_and_length(engine, rng, cell, direction, dtype):
    layer = recurrent_layer(rng, cell, direction, (13, 22), dtype=dtype)
    kernel = engine.compile(layer, threads=2)
    for batch, length in ((0, 3), (1, 1), (1, 7), (2, 3), (5, 1), (17, 4), (33, 2), (70, 3)):
        x = noise(rng, length, batch, 13)
        assert_same(kernel(x), recurrent_reference(layer, x))
        if batch:
            assert_same(kernel(x), onnxruntime_recurrent(layer, x))


@by_engine
@by_cell
@by_direction
@pytest.mark.parametrize("batch", [1, 6])
def test_states_to_begin_with(engine, rng, cell, direction, batch):
    layer = recurrent_layer(rng, cell, direction, (5, 8))
    x, states = noise(rng, 4, batch, 5), states_of(rng, layer, batch)
    kept = [state.copy() for state in states]
    kernel = engine.compile(layer, threads=1)
    assert_same(kernel(x, *states), recurrent_reference(layer, x, *states))
    assert all(np.array_equal(state, before) for state, before in zip(states, kept, strict=True))
    alone = [None] * (layer.states - 1) + states[-1:]
    assert_same(kernel(x, *alone), recurrent_reference(layer, x, *alone))


@by_engine
@by_cell
@pytest.mark.parametrize("density", [0.02, 0.3, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_densities(engine, rng, cell, density, bias):
    layer = recurrent_layer(rng, cell, "bidirectional", (30, 40), density, bias=bias)
    kernel = engine.compile(layer, threads=1)
    for batch in (1, 9):
        x = noise(rng, 5, batch, 30)
        assert_same(kernel(x), recurrent_reference(layer, x))


@by_engine
@by_cell
@pytest.mark.parametrize("columns", [0, 3])
def test_weights_without_nonzeros(engine, rng, cell, columns):
    rows = GATES[cell] * 4
    empty = [sparse.csr_array((rows, width), dtype=np.float32) for width in (columns, 4)]
    layer = SparseRecurrent(cell, "reverse", *empty, noise(rng, 2 * rows))
    for batch in (1, 5):
        x = noise(rng, 3, batch, columns)
        assert_same(engine.compile(layer, threads=2)(x), recurrent_reference(layer, x))


@by_engine
@by_direction
def test_a_sequence_without_steps_ends_where_it_began(engine, rng, direction):
    layer = recurrent_layer(rng, "lstm", direction, (5, 8))
    x, states = noise(rng, 0, 2, 5), states_of(rng, layer, 2)
    y, *last = engine.compile(layer, threads=1)(x, *states)
    assert y.shape == (0, layer.directions, 2, 8)
    assert all(np.array_equal(end, begin) for end, begin in zip(last, states, strict=True))


@by_engine
@by_cell
@pytest.mark.parametrize("batch", [1, 70])
def test_a_layer_large_enough_for_threads(engine, rng, cell, batch):
    layer = recurrent_layer(rng, cell, "bidirectional", (90, 128), 0.2)
    x = noise(rng, 12, batch, 90)
    assert_same(engine.compile(layer, threads=4)(x), recurrent_reference(layer, x))


@by_engine
def test_more_hidden_units_than_fit_side_by_side(engine, rng, monkeypatch):
    """Tiles are then narrower than the batch would have them."""
    monkeypatch.setattr("l0compress_runtime.engines.numba_recurrent.PACKED_FLOATS", 700)
    layer = recurrent_layer(rng, "gru", "forward", (5, 41))
    x = noise(rng, 3, 70, 5)
    assert_same(engine.compile(layer, threads=1)(x), recurrent_reference(layer, x))


@by_engine
def test_gates_far_from_zero_and_what_is_no_number(engine):
    one = sparse.csr_array(np.ones((4, 1), np.float32))
    layer = SparseRecurrent("lstm", "forward", one, one)
    kernel = engine.compile(layer, threads=1)
    for batch in (1, 2):
        x = np.full((3, batch, 1), 1e6, np.float32)
        x[1] = -1e6
        assert_same(kernel(x), recurrent_reference(layer, x))
        x[0, -1] = np.nan
        assert all(np.isnan(made[..., -1, :]).all() for made in kernel(x))


@pytest.mark.mostly_slow
@by_engine
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_layers_of_any_shape(engine, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    cell, direction = data.draw(st.sampled_from(sorted(GATES))), data.draw(st.sampled_from(DIRECTIONS))
    columns, hidden, batch, length = (data.draw(st.integers(*span)) for span in ((0, 40), (1, 40), (0, 70), (0, 6)))
    options = {"dtype": data.draw(st.sampled_from(DTYPES)), "bias": data.draw(st.booleans())}
    layer = recurrent_layer(rng, cell, direction, (columns, hidden), data.draw(st.sampled_from([0.05, 0.5])), **options)
    x = noise(rng, length, batch, columns)
    kernel = engine.compile(layer, threads=data.draw(st.integers(1, 4)))
    assert_same(kernel(x), recurrent_reference(layer, x))


@by_engine
def test_input_that_is_neither_contiguous_nor_writeable(engine, rng):
    layer = recurrent_layer(rng, "gru", "forward", (6, 7))
    x, state = noise(rng, 6, 3, 4).T, noise(rng, 7, 3, 1).T
    x.flags.writeable = state.flags.writeable = False
    kernel = engine.compile(layer, threads=1)
    assert_same(kernel(x, state), recurrent_reference(layer, x, state))


@by_engine
def test_four_threads_at_once_get_the_same_bits_as_one_and_outputs_stay(engine, rng):
    layer = recurrent_layer(rng, "lstm", "bidirectional", (60, 100), 0.3)
    kernel = engine.compile(layer, threads=2)
    inputs = [noise(rng, length, batch, 60) for length, batch in ((20, 1), (9, 40), (3, 7))]
    expected = [kernel(x) for x in inputs]
    kept = [[made.copy() for made in outputs] for outputs in expected]

    def run(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(0, len(inputs), 20)
        return all(np.array_equal(a, b) for at in order for a, b in zip(kernel(inputs[at]), kept[at], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(6))) == [True] * 6
    assert all(np.array_equal(a, b) for pair in zip(expected, kept, strict=True) for a, b in zip(*pair, strict=True))


@by_engine
@pytest.mark.parametrize(
    "x", [np.zeros((2, 1, 5), np.float32), np.zeros((2, 1, 6)), np.float32(1), np.zeros((2, 6), np.float32)]
)
def test_other_sequences_are_refused(engine, rng, x):
    kernel = engine.compile(recurrent_layer(rng, "gru", "forward", (6, 3)), threads=1)
    with pytest.raises(
        InputError, match=r"takes float32 \(length, batch, 6\), but was given .* Nothing was computed\."
    ):
        kernel(x)


@by_engine
@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([np.zeros((1, 3, 3), np.float32)], r"states of float32 \(1, 2, 3\), but was given float32 \(1, 3, 3\)"),
        ([np.zeros((1, 2, 3))], r"states of float32 \(1, 2, 3\), but was given float64"),
        ([None, None], r"with the cell 'gru' takes 1 initial state\(s\), but was given 2"),
    ],
)
def test_other_states_are_refused(engine, rng, states, message):
    kernel = engine.compile(recurrent_layer(rng, "gru", "forward", (6, 3)), threads=1)
    with pytest.raises(InputError, match=message):
        kernel(np.zeros((4, 2, 6), np.float32), *states)
