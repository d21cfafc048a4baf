"""Ternary weights in a bundle: exact, in at most two bits a value, and run by every engine like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bundles import NETWORKS, SPARSE, mlp_bundle, ternary_mlp
from hostile import members
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from l0compress import BundleSettings, capture, export_bundle
from l0compress.graph.groups.weights import find_weights
from l0compress.training.ternary import ternarised, ternary_weights
from l0compress_runtime import load
from l0compress_runtime.coding import bits_at_least, decode, encode_ternary
from l0compress_runtime.engines import find
from l0compress_runtime.layers import SparseEmbedding, SparseLinear
from l0compress_runtime.ternary import packed_codes, signs_and_scale, unpacked_codes

SIGNS = hnp.arrays(np.int8, st.integers(0, 40), elements=st.sampled_from([-1, 0, 0, 1]))


def ternary_array(shape: tuple[int, ...], density: float, axis: int = 0, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scale = generator.uniform(0.1, 3.0, [size if dim == axis else 1 for dim, size in enumerate(shape)])
    signs = np.where(generator.random(shape) < 0.5, -1, 1) * (generator.random(shape) < density)
    return (signs * scale.astype(np.float32)).astype(np.float32)


def form_of(data: bytes) -> set[str]:
    return set(members(data))


class TestTensors:
    @given(SIGNS)
    @settings(max_examples=100, deadline=None)
    def test_four_signs_take_a_byte(self, signs):
        packed = packed_codes(signs)
        assert len(packed) == -(-len(signs) // 4)
        np.testing.assert_array_equal(unpacked_codes(packed, len(signs)), signs)

    @pytest.mark.parametrize("density", [0.0, 0.005, 0.05, 0.5, 1.0])
    @pytest.mark.parametrize(("shape", "axis"), [((60, 70), 0), ((60, 70), 1), ((12, 8, 3, 3), 0), ((2, 24, 40), 1)])
    def test_they_come_back_exactly(self, shape, axis, density):
        array = ternary_array(shape, density, axis)
        spec, data = encode_ternary(array, (axis,))
        assert (spec.storage, spec.nonzeros) == ("ternary", np.count_nonzero(array))
        np.testing.assert_array_equal(decode(spec, data).dense(), array)

    @pytest.mark.parametrize(
        ("density", "form"), [(0.5, {"scale.npy", "codes.npy"}), (0.02, {"scale.npy", "gaps.npy", "signs.npy"})]
    )
    def test_the_smaller_of_two_forms_is_written_near_the_limit_of_information(self, density, form):
        array = ternary_array((256, 1024), density)
        spec, data = encode_ternary(array, (0,))
        assert form_of(data) == form
        assert len(data) <= 1.08 * bits_at_least(array.size, spec.nonzeros, 1) / 8 + 4 * len(array) + 500
        assert len(data) < 2 * array.size / 8 + 4 * len(array) + 500

    def test_one_value_that_differs_is_not_ternary(self):
        array = ternary_array((6, 7), 0.9)
        array[3, np.flatnonzero(array[3])[0]] *= np.float32(1.0000002)
        assert signs_and_scale(array, 0) is None and encode_ternary(array, (0, 1)) is None

    def test_the_first_axis_that_fits_has_the_scales(self):
        assert encode_ternary(ternary_array((9, 12), 0.9, axis=1), (0, 1))[0].scale_axis == 1
        assert encode_ternary(np.ones((9, 12), np.float32), (1, 0))[0].scale_axis == 1

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("axis", [0, 1])
    def test_rows_have_int8_signs_where_scales_are_theirs_and_floats_elsewhere(self, transposed, axis):
        array = ternary_array((20, 30), 0.4, axis)
        matrix, scale = decode(*encode_ternary(array, (axis,))).csr(transposed=transposed)
        of_rows = axis == int(transposed)
        assert matrix.dtype == (np.int8 if of_rows else np.float32) and (scale is not None) == of_rows
        found = matrix.toarray() * (scale[:, None] if of_rows else 1)
        np.testing.assert_array_equal(found, array.T if transposed else array)


@pytest.mark.parametrize("engine", [engine.name for engine in find() if engine.name != "torch"])
@pytest.mark.parametrize("density", [0.5, 0.02])
@pytest.mark.parametrize("samples", [1, 2, 70])
def test_engines_multiply_by_signs_and_scales(engine, density, samples):
    array = ternary_array((130, 90), density)
    matrix, scale = decode(*encode_ternary(array, (0,))).csr()
    x = np.random.default_rng(1).standard_normal((samples, 90)).astype(np.float32)
    (found,) = (each for each in find() if each.name == engine)
    y = found.compile(SparseLinear(matrix, scale=scale), threads=1)(x)
    np.testing.assert_allclose(y, x.astype(np.float64) @ array.T.astype(np.float64), rtol=2e-5, atol=2e-4)
    rows = found.compile(SparseEmbedding(matrix, scale), threads=1)(np.arange(samples) - 1)
    np.testing.assert_array_equal(rows, array[np.arange(samples) - 1])


NAMES = ["convolutions", "attention", "columns", "LSTM"]


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_of_ternary_weights_computes_what_they_do(tmp_path, name):
    """Zeros, and then all that is left made ternary: convolutions behind a batch norm, transposed and recurrent."""
    torch.manual_seed(0)
    model, call = NETWORKS[name]()
    graph = capture(model, call.args)
    graph = ternarised(graph, ternary_weights(graph))
    exported = export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE)
    assert exported.equality.max_relative < 2e-5
    wanted = [w for w in find_weights(graph) if not w.looked_up and len(w.shape) > 1 and w.numel >= 256]
    assert len(exported.manifest.ternary) >= len(wanted) > 0


@pytest.mark.parametrize("engine", ["scipy", "numba", None])
def test_both_forms_are_read_by_layers_and_by_dense_graphs(tmp_path, engine):
    model, x = ternary_mlp(), torch.randn(5, 48)
    path = export_bundle(capture(model, (x[:2],)), tmp_path / "model.l0c", settings=SPARSE).path
    bundle = load(path, engine=engine) if engine else load(path)
    np.testing.assert_allclose(
        bundle.run({"input": x.numpy()})["output_0"], model(x).detach().numpy(), rtol=1e-4, atol=1e-4
    )
    assert {layer.name for layer in bundle.manifest.layers.values()} == {"2", "4"}
    files = members(path.read_bytes())
    forms = {name: form_of(files[spec.member]) for name, spec in bundle.manifest.ternary.items()}
    assert forms == {
        "0.weight": {"scale.npy", "codes.npy"},
        "2.weight": {"scale.npy", "gaps.npy", "signs.npy"},
        "4.weight": {"scale.npy", "codes.npy"},
    }


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_what_rounds_other_weights_leaves_them_exact(tmp_path, storage):
    graph = capture(ternary_mlp(), (torch.randn(2, 48),))
    settings = BundleSettings(measure=False, threads=1, storage=storage)
    exported = export_bundle(graph, tmp_path / "model.l0c", settings=settings)
    assert len(exported.manifest.ternary) == 3 and exported.equality.max_relative < 1e-5


def test_what_is_stored_so_is_said(tmp_path):
    exported = export_bundle(capture(ternary_mlp(), (torch.randn(2, 48),)), tmp_path / "model.l0c", settings=SPARSE)
    assert exported.lines()[2] == (
        "3 weights are ternary, one scale times -1, 0 or 1 in every row, and stored so, exactly: 80,384 values of at "
        "most two bits, 87.9% of them 0"
    )
    assert exported.to_json()["ternary_weights"] == ["0.weight", "2.weight", "4.weight"]
    assert exported.size_bytes < exported.onnx_bytes / 18


@pytest.mark.slow
def test_a_file_without_them_is_one_that_earlier_readers_read(tmp_path):
    text = mlp_bundle(tmp_path / "model.l0c").manifest.to_json()
    assert '"version":3' in text and '"ternary"' not in text


def test_a_scale_a_value_is_no_gain_and_is_not_written(tmp_path):
    """A matrix of one column is ternary in every row, trivially."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 400), nn.ReLU(), nn.Linear(400, 1)).eval()
    exported = export_bundle(capture(model, (torch.randn(2, 1),)), tmp_path / "model.l0c", settings=SPARSE)
    assert not exported.manifest.ternary
