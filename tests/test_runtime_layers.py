"""Sparse layers refuse what an engine must never see, and the reference says what they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sparse_layers import sparse_matrix

from l0compress.errors import InputError
from l0compress_runtime.layers import SparseConv, SparseEmbedding, SparseLinear, SparseRecurrent, float_weight
from l0compress_runtime.reference import reference

GOOD = {"data": [1.0, 2.0, 3.0], "indices": [0, 2, 1], "starts": [0, 2, 3], "shape": (2, 3)}

SQUARE = sparse.csr_array(np.eye(2, dtype=np.float32))


def raw(data: Any, indices: Any, starts: Any, shape: tuple[int, int], dtype: Any = np.float32) -> sparse.csr_array:
    """CSR as a file might hold it, past the checks of scipy's constructor."""
    matrix = sparse.csr_array(shape, dtype=dtype)
    matrix.data, matrix.indices, matrix.indptr = np.array(data, dtype), np.array(indices), np.array(starts)
    return matrix


BAD = {
    "index beyond the columns": ({"indices": [0, 3, 1]}, "it has indices between 0 and 3 in rows of 3"),
    "index below zero": ({"indices": [-1, 2, 1]}, "it has indices between -1 and 2 in rows of 3"),
    "indices that fall": ({"indices": [2, 0, 1]}, "the indices of a row do not increase"),
    "an index twice": ({"indices": [2, 2, 1]}, "the indices of a row do not increase"),
    "rows that end before they begin": ({"starts": [0, 4, 3]}, "its row pointers do not divide 3 nonzeros into 2 rows"),
    "rows beyond the values": ({"starts": [0, 2, 4]}, "its row pointers do not divide 3 nonzeros into 2 rows"),
    "rows that begin late": ({"starts": [1, 2, 3]}, "its row pointers do not divide 3 nonzeros into 2 rows"),
    "too few rows": ({"starts": [0, 3]}, "its row pointers do not divide 3 nonzeros into 2 rows"),
    "too few values": ({"data": [1.0, 2.0]}, "it has values of shape (2,) at 3 indices"),
    "not a number": ({"data": [1.0, float("nan"), 2.0]}, "a value is not finite"),
    "infinity": ({"data": [1.0, float("inf"), 2.0]}, "a value is not finite"),
    "float64": ({"dtype": np.float64}, "its values are float64, but must be float32"),
    "indices that are no integers": (
        {"indices": [0.0, 2.0, 1.0]},
        "its indices are float64 (3,) and its row pointers int64 (3,), but must be vectors of integers",
    ),
    "values in two dimensions": ({"data": [[1.0], [2.0], [3.0]]}, "it has values of shape (3, 1) at 3 indices"),
    "int8 without a scale": ({"dtype": np.int8}, "its values are int8, but must be float32"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_weight_that_would_be_read_out_of_bounds_is_no_layer(name):
    change, problem = BAD[name]
    weight = raw(**{**GOOD, **change})
    expected = f"a sparse layer cannot be made: {problem}. Nothing was computed. Export the model again."
    makers = (
        SparseLinear,
        SparseEmbedding,
        lambda weight: SparseConv(weight, (3,)),
        lambda weight: SparseRecurrent("rnn_tanh", "forward", weight, SQUARE),
        lambda weight: SparseRecurrent("rnn_tanh", "forward", SQUARE, weight),
    )
    for make in makers:
        with pytest.raises(InputError) as refused:
            make(weight)
        assert str(refused.value) == expected


def test_the_good_one_is_a_layer():
    layer = SparseLinear(raw(**GOOD))
    assert layer.shape == (2, 3)
    assert float_weight(layer).toarray().tolist() == [[1, 0, 2], [0, 3, 0]]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bias": np.zeros(3, np.float32)}, r"its bias is float32 \(3,\), but must be float32 \(2,\)"),
        ({"bias": np.zeros(2)}, r"its bias is float64 \(2,\), but must be float32 \(2,\)"),
        ({"bias": np.full(2, np.nan, np.float32)}, "its bias is not finite"),
        ({"activation": "softmax"}, "its activation is 'softmax', but must be None or one of relu, gelu, gelu_tanh,"),
        ({"scale": np.ones(2, np.float32)}, "its values are float32, but must be int8"),
    ],
)
def test_what_follows_the_product_has_to_fit(options, problem):
    with pytest.raises(InputError, match=f"^a sparse layer cannot be made: {problem}"):
        SparseLinear(raw(**GOOD), **options)


def test_a_scale_has_to_have_a_number_a_row():
    weight = raw(**{**GOOD, "dtype": np.int8})
    with pytest.raises(InputError, match=r"its scale is float32 \(3,\), but must be float32 \(2,\)"):
        SparseLinear(weight, scale=np.ones(3, np.float32))


def test_a_dense_matrix_is_no_weight():
    with pytest.raises(InputError, match="its weight is ndarray, but must be a scipy"):
        SparseLinear(np.eye(3, dtype=np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": (3,), "stride": (1, 1)},
        {"kernel": (3,), "padding": ((1, 1), (1, 1))},
        {"kernel": (3,), "stride": (0,)},
        {"kernel": (3,), "dilation": (0,)},
        {"kernel": (3,), "padding": ((-1, 0),)},
        {"kernel": (3,), "padding": ((1,),)},
        {"kernel": (0,)},
        {"kernel": ()},
        {"kernel": (1, 1, 1)},
        {"kernel": (3,), "groups": 0},
        {"kernel": (3,), "groups": 4},
        {"kernel": (2,)},
    ],
)
def test_a_window_that_makes_no_sense_is_no_convolution(options):
    with pytest.raises(InputError, match=r"^a sparse layer cannot be made: .* Nothing was computed\."):
        SparseConv(raw(**GOOD), **options)


@pytest.mark.parametrize(
    ("cell", "direction", "rows", "bias", "problem"),
    [
        ("lstm", "forward", (8, 7), None, r"its weights are \(8, 3\) and \(7, 2\), but must have 8 rows, 4 for each"),
        ("lstm", "forward", (7, 8), None, r"its weights are \(7, 3\) and \(8, 2\)"),
        ("gru", "forward", (8, 8), None, ".* but must have 6 rows, 3 for each hidden unit"),
        ("lstm", "bidirectional", (8, 8), None, ".* but must have 16 rows"),
        ("lstm", "forward", (8, 8), 8, r"its bias is float32 \(8,\), but must be float32 \(16,\)"),
        ("peephole", "forward", (8, 8), None, "there is no cell 'peephole' in direction 'forward'"),
        ("lstm", "sideways", (8, 8), None, "there is no cell 'lstm' in direction 'sideways'"),
    ],
)
def test_a_recurrent_layer_has_the_rows_of_its_gates(cell, direction, rows, bias, problem):
    weight, recurrent = (sparse.csr_array((rows[at], width), dtype=np.float32) for at, width in enumerate((3, 2)))
    with pytest.raises(InputError, match=f"^a sparse layer cannot be made: {problem}"):
        SparseRecurrent(cell, direction, weight, recurrent, None if bias is None else np.zeros(bias, np.float32))


def test_a_recurrent_layer_has_a_hidden_unit():
    weight, recurrent = (sparse.csr_array((0, width), dtype=np.float32) for width in (3, 0))
    with pytest.raises(InputError, match="but must have 0 rows"):
        SparseRecurrent("lstm", "forward", weight, recurrent)


@pytest.mark.parametrize("make", [SparseLinear, SparseEmbedding])
def test_int8_values_stand_for_multiples_of_a_rows_scale(make):
    rng = np.random.default_rng(0)
    weight, scale = sparse_matrix(rng, (6, 5), 0.5, np.int8), rng.uniform(0.1, 1, 6).astype(np.float32)
    dense = float_weight(make(weight, scale=scale)).toarray()
    np.testing.assert_array_equal(dense, weight.toarray() * scale[:, None])


def test_the_reference_gathers_rows_as_numpy_does():
    weight = sparse_matrix(np.random.default_rng(0), (6, 5), 0.5)
    rows = np.array([[0, -1], [5, 2]])
    np.testing.assert_array_equal(reference(SparseEmbedding(weight), rows), weight.toarray()[rows])
