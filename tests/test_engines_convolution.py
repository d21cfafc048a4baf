"""Sparse convolutions in one and two dimensions, by every engine, against numpy in float64 and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sparse_layers import DTYPES, noise, onnxruntime_output, scale_of, sparse_matrix, vector

from l0compress.errors import InputError
from l0compress_runtime.engines import Engine, find
from l0compress_runtime.engines import numba_convolution as numba_conv
from l0compress_runtime.layers import ACTIVATIONS, SparseConv
from l0compress_runtime.reference import reference

by_engine = pytest.mark.parametrize("engine", find(["scipy", "numba"]), ids=lambda engine: engine.name)

# channels in and out, spatial size, and the options of the layer
CASES: dict[str, tuple[int, int, tuple[int, ...], dict[str, Any]]] = {
    "3x3": (6, 8, (9, 11), {"kernel": (3, 3), "padding": ((1, 1), (1, 1))}),
    "1x1": (6, 8, (9, 11), {"kernel": (1, 1)}),
    "1x1 on one place": (6, 8, (1, 1), {"kernel": (1, 1)}),
    "1x1 on three places": (6, 8, (1, 3), {"kernel": (1, 1)}),
    "1x1, stride": (6, 8, (9, 12), {"kernel": (1, 1), "stride": (2, 2)}),
    "1x1, padding": (6, 8, (5, 6), {"kernel": (1, 1), "padding": ((1, 0), (0, 2))}),
    "no padding": (3, 5, (8, 7), {"kernel": (3, 2)}),
    "stride": (4, 5, (11, 12), {"kernel": (3, 3), "stride": (2, 3), "padding": ((1, 1), (1, 1))}),
    "stride beyond the kernel": (4, 5, (11, 12), {"kernel": (2, 1), "stride": (3, 4)}),
    "asymmetric padding": (3, 4, (7, 8), {"kernel": (3, 3), "padding": ((0, 2), (3, 1)), "stride": (2, 2)}),
    "padding beyond the kernel": (3, 4, (4, 5), {"kernel": (2, 2), "padding": ((4, 3), (5, 4))}),
    "dilation": (3, 4, (12, 13), {"kernel": (3, 2), "dilation": (2, 5)}),
    "dilation and stride": (
        3,
        4,
        (15, 16),
        {"kernel": (3, 3), "dilation": (3, 2), "stride": (2, 3), "padding": ((2, 1), (1, 2))},
    ),
    "groups": (6, 9, (7, 7), {"kernel": (3, 3), "groups": 3, "padding": ((1, 1), (1, 1))}),
    "depthwise": (6, 6, (7, 7), {"kernel": (3, 3), "groups": 6, "padding": ((1, 1), (1, 1)), "stride": (2, 2)}),
    "kernel beyond the input": (2, 3, (3, 2), {"kernel": (5, 4), "padding": ((2, 2), (2, 1))}),
    "kernel as large as the input": (2, 3, (4, 5), {"kernel": (4, 5)}),
    "one dimension": (5, 6, (40,), {"kernel": (3,), "padding": ((1, 1),)}),
    "one dimension, stride, dilation": (5, 6, (50,), {"kernel": (4,), "stride": (3,), "dilation": (2,)}),
    "one dimension, causal": (4, 4, (30,), {"kernel": (3,), "padding": ((2, 0),), "groups": 2}),
    "one dimension, 1": (4, 4, (33,), {"kernel": (1,)}),
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def convolution(
    rng, inputs: int, outputs: int, options: dict[str, Any], *, dtype: str = "float32", density: float = 0.4
):
    columns = inputs // options.get("groups", 1) * int(np.prod(options["kernel"]))
    weight = sparse_matrix(rng, (outputs, columns), density, np.dtype(dtype))
    return SparseConv(weight, **{"bias": vector(rng, outputs), "scale": scale_of(rng, outputs, dtype), **options})


def assert_same(engine: Engine, layer: SparseConv, x: np.ndarray, *, threads: int) -> None:
    actual, expected = engine.compile(layer, threads=threads)(x), reference(layer, x)
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    largest = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=3e-6 * largest)


@by_engine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("case", CASES)
def test_convolutions(engine, rng, case, batch, threads, dtype):
    inputs, outputs, spatial, options = CASES[case]
    layer = convolution(rng, inputs, outputs, options, dtype=dtype)
    x = noise(rng, batch, inputs, *spatial)
    assert_same(engine, layer, x, threads=threads)
    np.testing.assert_allclose(reference(layer, x), onnxruntime_output(layer, x), rtol=1e-5, atol=1e-5)


@by_engine
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
def test_activations(engine, rng, activation, kernel):
    layer = convolution(rng, 4, 5, {"kernel": kernel, "activation": activation})
    assert_same(engine, layer, 3 * noise(rng, 2, 4, 6, 7), threads=1)


@by_engine
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("batch", [0, 1, 2, 5])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
def test_images_large_enough_for_threads(engine, rng, kernel, batch, threads):
    layer = convolution(rng, 32, 48, {"kernel": kernel}, density=0.5)
    assert_same(engine, layer, noise(rng, batch, 32, 41, 37), threads=threads)


@by_engine
@pytest.mark.parametrize("threads", [1, 3])
def test_a_long_signal_large_enough_for_threads(engine, rng, threads):
    layer = convolution(rng, 16, 24, {"kernel": (5,), "stride": (2,), "padding": ((3, 2),)}, density=0.5)
    assert_same(engine, layer, noise(rng, 2, 16, 5003), threads=threads)


@by_engine
@pytest.mark.parametrize("threads", [1, 4])
def test_small_images_with_many_channels_are_shared_by_rows_of_the_weight(engine, rng, threads):
    layer = convolution(rng, 200, 300, {"kernel": (3, 3), "padding": ((1, 1), (1, 1))}, density=0.3)
    assert_same(engine, layer, noise(rng, 1, 200, 3, 3), threads=threads)


@pytest.mark.parametrize("floats", [1, 300, 1000])
@pytest.mark.parametrize("case", CASES)
def test_images_are_packed_in_bands_when_they_are_too_large_for_the_cache(monkeypatch, rng, case, floats):
    monkeypatch.setattr(numba_conv, "PACKED_FLOATS", floats)
    inputs, outputs, spatial, options = CASES[case]
    layer = convolution(rng, inputs, outputs, options)
    (engine,) = find(["numba"])
    x = noise(rng, 2, inputs, *(7 * size for size in spatial))
    assert_same(engine, layer, x, threads=2)


@by_engine
def test_a_convolution_without_nonzeros(engine, rng):
    layer = convolution(rng, 4, 5, {"kernel": (3, 3)}, density=0)
    assert_same(engine, layer, noise(rng, 2, 4, 6, 7), threads=2)


@by_engine
def test_one_kernel_takes_images_of_any_size(engine, rng):
    layer = convolution(rng, 4, 5, {"kernel": (3, 3), "stride": (2, 1), "padding": ((1, 1), (0, 1))})
    kernel = engine.compile(layer, threads=2)
    for size in [(3, 3), (8, 5), (30, 31), (8, 5), (64, 3)]:
        x = noise(rng, 2, 4, *size)
        np.testing.assert_allclose(kernel(x), reference(layer, x), rtol=1e-5, atol=1e-5)


@by_engine
@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (2, 4, 9), (4, 9, 9)])
def test_a_convolution_refuses_other_shapes(engine, rng, shape):
    kernel = engine.compile(convolution(rng, 4, 5, {"kernel": (3, 3)}), threads=1)
    with pytest.raises(InputError, match=r"takes float32 \(n, 4, 2 spatial dimensions\), but was given"):
        kernel(np.zeros(shape, np.float32))


@by_engine
def test_a_convolution_refuses_an_image_that_is_too_small(engine, rng):
    kernel = engine.compile(convolution(rng, 4, 5, {"kernel": (3, 3), "dilation": (2, 1)}), threads=1)
    with pytest.raises(InputError, match=r"does not fit into an input of size \(4, 9\)\. Nothing was computed"):
        kernel(np.zeros((1, 4, 4, 9), np.float32))


@by_engine
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_convolutions_of_any_shape(engine, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dims = data.draw(st.sampled_from([1, 2]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(dims))

    options = {
        "kernel": each(1, 4),
        "stride": each(1, 3),
        "dilation": each(1, 3),
        "groups": data.draw(st.sampled_from([1, 2])),
    }
    options["padding"] = tuple(zip(each(0, 4), each(0, 4), strict=True))
    spatial = each(1, 40 if dims == 2 else 300)
    layer = convolution(rng, 4, 6, options, dtype=data.draw(st.sampled_from(DTYPES)))
    sizes = zip(spatial, layer.padding, layer.kernel, layer.dilation, strict=True)
    assume(all(size + sum(pad) > dilation * (kernel - 1) for size, pad, kernel, dilation in sizes))
    x = noise(rng, data.draw(st.integers(1, 3)), 4, *spatial)
    assert_same(engine, layer, x, threads=data.draw(st.integers(1, 3)))
