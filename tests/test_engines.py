"""Engines: every one of them computes what the layer says, by numpy in float64 and by ONNX Runtime."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sparse_layers import DTYPES, noise, onnxruntime_output, recurrent_layer, scale_of, sparse_matrix, vector

from l0compress.errors import InputError
from l0compress_runtime.engines import ENGINES, find
from l0compress_runtime.layers import ACTIVATIONS, GATES, SparseConv, SparseEmbedding, SparseLinear
from l0compress_runtime.reference import reference

AVAILABLE = find()
by_engine = pytest.mark.parametrize("engine", AVAILABLE, ids=lambda engine: engine.name)
by_gathering_engine = pytest.mark.parametrize(
    "engine", [engine for engine in AVAILABLE if engine.name != "torch"], ids=lambda engine: engine.name
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def linear(rng, rows: int, columns: int, density: float = 0.2, *, dtype: str = "float32", **options) -> SparseLinear:
    weight = sparse_matrix(rng, (rows, columns), density, np.dtype(dtype))
    return SparseLinear(weight, scale=scale_of(rng, rows, dtype), **options)


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_every_engine_is_tested_here():
    assert [engine.name for engine in AVAILABLE] == [engine.name for engine in ENGINES]


@by_engine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1, 2, 7, 8, 17, 33, 64, 150])
def test_a_linear_layer_at_any_batch_size(engine, rng, batch, threads, dtype):
    layer = linear(rng, 70, 45, dtype=dtype, bias=vector(rng, 70))
    x = noise(rng, batch, 45)
    actual = engine.compile(layer, threads=threads)(x)
    assert_same(actual, reference(layer, x))
    if batch:
        assert_same(actual, onnxruntime_output(layer, x))


@by_engine
@pytest.mark.parametrize("batch", [1, 64])
def test_a_linear_layer_large_enough_for_threads(engine, rng, batch):
    layer = linear(rng, 900, 1000, 0.3, bias=vector(rng, 900), activation="relu")
    x = noise(rng, batch, 1000)
    np.testing.assert_allclose(engine.compile(layer, threads=3)(x), reference(layer, x), rtol=1e-4, atol=1e-4)


@by_engine
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (2, 1, 4)])
def test_a_linear_layer_keeps_leading_dimensions(engine, rng, leading):
    layer = linear(rng, 5, 6, bias=vector(rng, 5))
    x = noise(rng, *leading, 6)
    assert_same(engine.compile(layer, threads=2)(x), reference(layer, x))


@by_engine
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_activations(engine, rng, activation):
    layer = linear(rng, 40, 30, bias=vector(rng, 40), activation=activation)
    x = 5 * noise(rng, 9, 30)
    assert_same(engine.compile(layer, threads=1)(x), reference(layer, x))


@by_engine
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_from_zero_and_of_what_is_no_number(engine, activation):
    layer = SparseLinear(sparse.csr_array(np.eye(1, dtype=np.float32)), activation=activation)
    kernel = engine.compile(layer, threads=1)
    x = np.array([[-1e9], [-200], [-89], [-88], [-1e-20], [0], [1e-20], [88], [200], [1e9]], np.float32)
    np.testing.assert_allclose(kernel(x), reference(layer, x), rtol=1e-5, atol=1e-7)
    assert np.isnan(kernel(np.full((1, 1), np.nan, np.float32))).all()


@by_engine
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (5, 4), (1, 1)])
@pytest.mark.parametrize("batch", [1, 9])
def test_a_linear_layer_without_nonzeros(engine, rng, shape, batch):
    layer = SparseLinear(sparse.csr_array(shape, dtype=np.float32), bias=vector(rng, shape[0]), activation="sigmoid")
    x = noise(rng, batch, shape[1])
    if engine.supports(layer):
        assert_same(engine.compile(layer, threads=2)(x), reference(layer, x))
    else:
        with pytest.raises(InputError, match=r"^the engine 'torch' runs linear layers with nonzeros, but was given"):
            engine.compile(layer, threads=2)


@by_engine
@pytest.mark.parametrize("batch", [1, 20])
def test_empty_rows_and_empty_columns(engine, rng, batch):
    dense = sparse_matrix(rng, (40, 30), 0.5).toarray()
    dense[:7] = dense[13] = dense[-3:] = 0
    dense[:, 4] = dense[:, -1] = 0
    layer = SparseLinear(sparse.csr_array(dense))
    x = noise(rng, batch, 30)
    assert_same(engine.compile(layer, threads=3)(x), reference(layer, x))


@pytest.mark.mostly_slow
@by_engine
@pytest.mark.parametrize("columns", [40_000, 70_000])
def test_more_columns_than_a_small_integer_counts(engine, rng, columns):
    weight = sparse.random_array((3, columns), density=0.001, random_state=rng, dtype=np.float32, format="csr")
    weight.sort_indices()
    layer = SparseLinear(weight)
    assert weight.indices.max() > np.iinfo(np.int16).max
    for batch in (1, 5, 64):
        x = noise(rng, batch, columns)
        assert_same(engine.compile(layer, threads=2)(x), reference(layer, x))


@by_engine
def test_input_that_is_not_contiguous(engine, rng):
    layer = linear(rng, 8, 6)
    x = noise(rng, 6, 10).T
    assert_same(engine.compile(layer, threads=1)(x), reference(layer, x))


@by_gathering_engine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 4)])
def test_an_embedding_gathers_rows(engine, rng, shape, dtype):
    layer = SparseEmbedding(sparse_matrix(rng, (11, 6), 0.4, np.dtype(dtype)), scale=scale_of(rng, 11, dtype))
    rows = rng.integers(-11, 11, shape)
    assert_same(engine.compile(layer, threads=2)(rows), reference(layer, rows))


@by_gathering_engine
@pytest.mark.parametrize("rows", [np.array([11]), np.array([-12]), np.array([0.0])])
def test_an_embedding_refuses_rows_that_it_lacks(engine, rng, rows):
    kernel = engine.compile(SparseEmbedding(sparse_matrix(rng, (11, 6), 0.4)), threads=1)
    with pytest.raises(InputError, match=r"takes integers from -11 to 10, but was given .* Nothing was computed\."):
        kernel(rows)


@by_engine
@pytest.mark.parametrize(
    "x", [np.zeros((2, 5), np.float32), np.zeros((2, 6)), np.float32(1), np.zeros((6, 2), np.float32)]
)
def test_a_linear_layer_refuses_other_shapes_and_dtypes(engine, rng, x):
    kernel = engine.compile(linear(rng, 8, 6), threads=1)
    with pytest.raises(InputError, match=r"takes float32 \(\.\.\., 6\), but was given .* Nothing was computed\."):
        kernel(x)


@by_engine
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_linear_layers_of_any_shape(engine, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, columns, batch = (data.draw(st.integers(0, largest)) for largest in (80, 80, 100))
    dtype = data.draw(st.sampled_from(DTYPES))
    layer = linear(rng, rows, columns, data.draw(st.sampled_from([0.02, 0.3, 1])), dtype=dtype, bias=vector(rng, rows))
    assume(engine.supports(layer))
    x = noise(rng, batch, columns)
    assert_same(engine.compile(layer, threads=data.draw(st.integers(1, 4)))(x), reference(layer, x))


def aligned_elsewhere(x: np.ndarray) -> np.ndarray:
    """A copy that begins one byte after where it should."""
    memory = bytearray(x.nbytes + 1)
    memory[1:] = x.tobytes()
    return np.frombuffer(memory, x.dtype, offset=1).reshape(x.shape)


@by_engine
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "kind",
    [
        lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
        aligned_elsewhere,
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        np.asfortranarray,
    ],
    ids=["read-only", "not aligned", "from the end", "mirrored", "strided", "columns"],
)
def test_arrays_of_every_kind(engine, rng, kind, batch):
    for columns in (30, 1):
        layer = linear(rng, 40, columns, 0.3)
        x = noise(rng, batch, columns)
        assert_same(engine.compile(layer, threads=1)(kind(x)), reference(layer, kind(x)))
    conv = SparseConv(sparse_matrix(rng, (8, 4 * 3), 0.5), (3,))
    if engine.supports(conv):
        images = noise(rng, batch, 4, 30)
        assert_same(engine.compile(conv, threads=1)(kind(images)), reference(conv, kind(images)))


@pytest.mark.slow
@by_engine
def test_what_is_let_go_is_gone_without_a_collector(engine, rng):
    """A weight may take gigabytes, and a server may have switched the collector of cycles off."""
    layers = [
        (linear(rng, 40, 30, 0.3), noise(rng, 5, 30)),
        (SparseConv(sparse_matrix(rng, (8, 4 * 9), 0.5), (3, 3)), noise(rng, 2, 4, 9, 9)),
        (SparseEmbedding(sparse_matrix(rng, (50, 16), 0.2)), np.arange(5)),
        *((recurrent_layer(rng, cell, "forward", (7, 16)), noise(rng, 3, 2, 7)) for cell in GATES),
    ]
    layers = [(layer, x) for layer, x in layers if engine.supports(layer)]
    for layer, x in layers:
        engine.compile(layer, threads=2)(x)  # numba's compiler, which runs once, leaves cycles of its own
    gc.collect()
    gc.disable()
    try:
        for layer, x in layers:
            kernel = engine.compile(layer, threads=2)
            kernel(x)
            alive = weakref.ref(kernel)
            del kernel
            assert alive() is None, layer
    finally:
        gc.enable()


def test_engines_are_found_by_name():
    assert [engine.name for engine in find(["scipy"])] == ["scipy"]
    assert find()[0].name == "scipy"
    with pytest.raises(InputError, match=r"^there is no engine 'magic'\. Nothing was run\. Choose from scipy, "):
        find(["magic"])


def test_an_engine_that_does_not_support_a_layer_says_so(rng):
    conv, table = SparseConv(sparse_matrix(rng, (2, 9), 0.5), (3, 3)), SparseEmbedding(sparse_matrix(rng, (2, 3), 1))
    recurrent = recurrent_layer(rng, "lstm", "forward", (3, 4))
    supported = {
        engine.name: [engine.supports(layer) for layer in (linear(rng, 3, 4), conv, table, recurrent)]
        for engine in ENGINES
    }
    assert supported == {"scipy": [True] * 4, "numba": [True] * 4, "torch": [True, False, False, False]}
