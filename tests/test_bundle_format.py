"""How tensors, archives and models are written: exactly, near the information limit, the same bytes every time."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import onnx
import pytest
from bundles import NETWORKS, SPARSE, mlp_bundle
from hostile import members
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from l0compress import capture, export_bundle
from l0compress_runtime.archive import Archive, FormatError, write_zip
from l0compress_runtime.coding import bits_at_least, decode, encode
from l0compress_runtime.protobuf import check_model, with_initializers

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=12)


def sparse_array(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape).astype(np.float32)
    return values * (generator.random(shape) < density)


class TestTensors:
    @given(
        hnp.arrays(
            np.float32,
            SHAPES,
            elements=st.sampled_from([0.0, 0.0, 0.0, 1.5, -2.0, float(np.float32(1e-30)), float(np.float32(3e38))]),
        )
    )
    @settings(max_examples=100, deadline=None)
    def test_sparse_tensors_come_back_exactly(self, array):
        spec, data = encode(array, storage="float32", is_sparse=True)
        np.testing.assert_array_equal(decode(spec, data).dense(), array)
        assert spec.nonzeros == np.count_nonzero(array)

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"])
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
    def test_dense_tensors_of_every_dtype_come_back_exactly(self, dtype, shape):
        array = np.random.default_rng(0).integers(-5, 5, shape).astype(dtype)
        spec, data = encode(array, storage=dtype, is_sparse=False)
        back = decode(spec, data).dense()
        assert back.dtype == array.dtype and back.shape == array.shape
        np.testing.assert_array_equal(back, array)

    @pytest.mark.parametrize("gap", [1, 2, 254, 255, 256, 257, 510, 511, 100_000])
    def test_gaps_around_the_escape(self, gap):
        array = np.zeros((2, gap + 3), np.float32)
        array[1, 0], array[1, gap] = 1.0, 2.0
        spec, data = encode(array, storage="float32", is_sparse=True)
        np.testing.assert_array_equal(decode(spec, data).dense(), array)

    @pytest.mark.parametrize(
        ("shape", "transposed"), [((7, 11), False), ((11, 7), True), ((7, 11), True), ((5, 3, 2, 2), False)]
    )
    def test_rows_of_csr(self, shape, transposed):
        array = sparse_array(shape, 0.3)
        matrix, scale = decode(*encode(array, storage="float32", is_sparse=True)).csr(transposed=transposed)
        flat = array.reshape(shape[0], -1)
        np.testing.assert_array_equal(matrix.toarray(), flat.T if transposed else flat)
        assert scale is None and matrix.has_sorted_indices

    def test_rows_over_two_dimensions(self):
        array = sparse_array((2, 12, 7), 0.3)
        matrix, scale = decode(*encode(array, storage="float32", is_sparse=True)).csr(row_dims=2)
        np.testing.assert_array_equal(matrix.toarray(), array.reshape(24, 7))
        assert scale is None

    def test_a_matrix_without_nonzeros(self):
        spec, data = encode(np.zeros((4, 5), np.float32), storage="float32", is_sparse=True)
        assert decode(spec, data).csr(transposed=True)[0].shape == (5, 4)

    @pytest.mark.parametrize("density", [0.1, 0.05, 0.02, 0.001])
    def test_the_size_is_near_the_information_limit(self, density):
        array = sparse_array((1024, 1024), density)
        spec, data = encode(array, storage="float32", is_sparse=True)
        limit = bits_at_least(array.size, spec.nonzeros or 0, 32) / 8
        assert len(data) < limit + 500

    def test_what_is_known_of_the_limit(self):
        assert bits_at_least(2, 1, 0) == 2.0
        assert bits_at_least(100, 100, 16) == 1600.0
        assert bits_at_least(0, 0, 32) == 0.0

    @pytest.mark.parametrize(("storage", "bits"), [("float16", 11), ("bfloat16", 8)])
    def test_half_precision_rounds_to_nearest(self, storage, bits):
        array = sparse_array((60, 70), 0.5)
        back = decode(*encode(array, storage=storage, is_sparse=True)).dense()
        assert np.all(np.abs(back - array) <= np.abs(array) * 2.0**-bits + 2.0**-25)
        assert back.dtype == np.float32 and np.any(back != array)

    def test_bfloat16_is_what_torch_makes_of_it(self):
        import torch

        array = np.concatenate([sparse_array((4000,), 0.9), np.array([1 + 2**-8, 1 + 3 * 2**-8, -1e-40], np.float32)])
        back = decode(*encode(array, storage="bfloat16", is_sparse=False)).dense()
        np.testing.assert_array_equal(back, torch.from_numpy(array).bfloat16().float().numpy())

    @pytest.mark.parametrize(("storage", "value"), [("float16", 70_000.0), ("bfloat16", 3.4e38)])
    def test_a_value_beyond_the_storage_is_refused(self, storage, value):
        with pytest.raises(OverflowError, match=f"beyond the range of {storage}"):
            encode(np.array([[value, 0]], np.float32), storage=storage, is_sparse=True)

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("is_sparse", [True, False])
    def test_int8_has_one_scale_an_output(self, axis, is_sparse):
        array = sparse_array((30, 40), 0.3) * np.geomspace(1e-3, 1e3, 30, dtype=np.float32)[:, None]
        array[3] = 0
        stored = decode(*encode(array, storage="int8", is_sparse=is_sparse, scale_axis=axis))
        largest = np.abs(array).max(axis=1 - axis, keepdims=True)
        assert np.all(np.abs(stored.dense() - array) <= largest / 127 * 0.5001)
        matrix, scale = stored.csr(transposed=axis == 1)
        assert matrix.dtype == np.int8 and scale is not None
        rebuilt = matrix.toarray().astype(np.float32) * scale[:, None]
        np.testing.assert_allclose(rebuilt.T if axis else rebuilt, stored.dense(), rtol=1e-6)

    @pytest.mark.parametrize("is_sparse", [True, False])
    def test_two_directions_share_the_int8_scales_of_their_rows(self, is_sparse):
        array = sparse_array((2, 30, 40), 0.3) * np.geomspace(1e-3, 1e3, 30, dtype=np.float32)[:, None]
        stored = decode(*encode(array, storage="int8", is_sparse=is_sparse, scale_axis=1))
        matrix, scale = stored.csr(row_dims=2)
        assert matrix.dtype == np.int8 and scale is not None and scale.shape == (60,)
        rebuilt = matrix.toarray().astype(np.float32) * scale[:, None]
        np.testing.assert_allclose(rebuilt.reshape(2, 30, 40), stored.dense(), rtol=1e-6)
        np.testing.assert_array_equal(scale[:30], scale[30:])

    def test_int8_along_the_other_axis_becomes_float(self):
        array = sparse_array((6, 8), 0.5)
        stored = decode(*encode(array, storage="int8", is_sparse=True, scale_axis=0))
        matrix, scale = stored.csr(transposed=True)
        assert scale is None
        np.testing.assert_allclose(matrix.toarray().T, stored.dense())


class TestDamage:
    """Whatever the bytes of a tensor are, they decode to what the spec says, or are refused."""

    @pytest.fixture
    def encoded(self):
        return encode(sparse_array((20, 30), 0.1), storage="float32", is_sparse=True)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"nonzeros": 5}, "not uint8"),
            ({"shape": (20, 2)}, "beyond the 40 elements"),
            ({"storage": "float16"}, "not uint8"),
            ({"nonzeros": None}, "expected"),
            ({"storage": "int8", "scale_axis": 0}, "expected"),
        ],
    )
    def test_a_spec_that_does_not_fit(self, encoded, change, message):
        spec, data = encoded
        with pytest.raises(FormatError, match=message):
            decode(replace(spec, **change), data)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite(self, value):
        spec, data = encode(np.array([[value, 0, 1]], np.float32), storage="float32", is_sparse=True)
        with pytest.raises(FormatError, match="not finite"):
            decode(spec, data)

    @pytest.mark.parametrize("gaps", [[255, 255], [3, 255], [255], [1, 2, 3], [0, 1, 255]])
    def test_gaps_that_place_too_few_or_too_many(self, gaps):
        spec, data = encode(np.array([[1, 0, 2.0]], np.float32), storage="float32", is_sparse=True)
        files = members(data)
        files["gaps.npy"] = npy(np.array(gaps, np.uint8))
        with pytest.raises(FormatError, match="positions, expected 2"):
            decode(spec, write_zip(files))

    def test_an_npy_header_that_promises_more_than_there_is(self):
        spec, data = encode(np.array([[1, 0, 2.0]], np.float32), storage="float32", is_sparse=True)
        files = members(data)
        files["gaps.npy"] = npy(np.zeros(2, np.uint8)).replace(b"(2,), ", b"(9,), ")
        with pytest.raises(FormatError, match="2 bytes"):
            decode(spec, write_zip(files))

    def test_pickles_are_not_read(self):
        spec, data = encode(np.array([[1, 0, 2.0]], np.float32), storage="float32", is_sparse=True)
        files = members(data)
        files["gaps.npy"] = npy(np.zeros(2, np.uint8)).replace(b"'|u1'", b"'|O' ")
        with pytest.raises(FormatError):
            decode(spec, write_zip(files))


def npy(array: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0))
    return stream.getvalue()


class TestModels:
    def test_constants_are_added_to_a_model_as_onnx_reads_it(self):
        arrays = {
            "w": np.arange(6, dtype=np.float32).reshape(2, 3),
            "i": np.array(7, np.int64),
            "b": np.array([True, False]),
            "none": np.zeros((0, 3), np.float16),
        }
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
        model = helper.make_model(helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y]))
        merged = onnx.load_from_string(with_initializers(model.SerializeToString(), arrays))
        onnx.checker.check_model(merged, full_check=True)
        found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in merged.graph.initializer}
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            np.testing.assert_array_equal(found[name], array)

    @pytest.mark.parametrize(
        "place", ["initializer", "attribute", "inner graph", "sparse", "sparse attribute", "function"]
    )
    def test_data_in_other_files_is_found_wherever_it_hides(self, place):
        tensor = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/passwd")
        model = hiding(tensor, place)
        with pytest.raises(FormatError, match="another file"):
            check_model(model.SerializeToString())
        tensor.ClearField("data_location")
        with pytest.raises(FormatError, match="another file"):
            check_model(hiding(tensor, place).SerializeToString())
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.EXTERNAL
        with pytest.raises(FormatError, match="another file"):
            check_model(hiding(tensor, place).SerializeToString())
        tensor.ClearField("data_location")
        check_model(hiding(tensor, place).SerializeToString())

    @pytest.mark.parametrize("domain", ["com.evil", "com.microsoft", "local"])
    def test_operators_that_are_not_onnx(self, domain):
        node = helper.make_node("Relu", ["x"], ["y"], domain=domain)
        model = helper.make_model(helper.make_graph([node], "g", [], []))
        with pytest.raises(FormatError, match=f"operators of b'{domain}'"):
            check_model(model.SerializeToString())

    @given(st.binary(max_size=200))
    @settings(max_examples=300, deadline=None)
    def test_any_bytes_are_accepted_or_refused(self, data):
        try:
            check_model(data)
        except FormatError:
            return


def hiding(tensor: TensorProto, place: str) -> onnx.ModelProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    graph = model.graph
    if place == "initializer":
        graph.initializer.append(tensor)
    elif place == "attribute":
        graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    elif place == "inner graph":
        graph.node.append(
            helper.make_node("If", ["c"], ["d"], then_branch=helper.make_graph([], "t", [], [], [tensor]))
        )
    elif place == "sparse attribute":
        sparse = onnx.SparseTensorProto(values=tensor, indices=TensorProto(), dims=[1])
        graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    elif place == "sparse":
        graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, indices=TensorProto(), dims=[1]))
    else:
        inner = helper.make_node("Constant", [], ["c"], value=tensor)
        model.functions.append(onnx.FunctionProto(name="f", domain="", node=[inner]))
    return model


class TestBundles:
    def test_the_same_graph_gives_the_same_bytes(self, tmp_path):
        first, second = (mlp_bundle(tmp_path / name).path.read_bytes() for name in ("a.l0c", "b.l0c"))
        assert first == second

    def test_a_zip_without_a_date_and_with_plain_arrays(self, tmp_path):
        path = mlp_bundle(tmp_path / "model.l0c").path
        with zipfile.ZipFile(path) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert archive.namelist()[0] == "manifest.json"
            for name in archive.namelist():
                if name.endswith(".npz"):
                    with archive.open(name) as stream:
                        arrays = np.load(stream, allow_pickle=False)
                        assert "values" in arrays and arrays["values"].dtype == np.uint8

    def test_nothing_in_the_file_speaks_of_this_machine(self, tmp_path):
        path = mlp_bundle(tmp_path / "model.l0c").path
        archive = Archive.from_bytes(path.read_bytes(), limit_bytes=10**8)
        for name in archive.names:
            assert str(tmp_path).encode() not in archive.read(name)

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
    def test_smaller_storages_are_smaller(self, tmp_path, storage):
        full = mlp_bundle(tmp_path / "full.l0c").size_bytes
        small = mlp_bundle(tmp_path / "small.l0c", storage=storage)
        assert small.size_bytes < full
        assert 1e-6 < small.equality.max_relative < 0.05


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["attention", "convolutions"])
def test_every_graph_of_a_bundle_is_a_valid_model(tmp_path, name):
    model, call = NETWORKS[name]()
    exported = export_bundle(capture(model, call.args), tmp_path / "model.l0c", settings=SPARSE)
    manifest, files = exported.manifest, members(exported.path.read_bytes())
    for segment in manifest.segments.values():
        tensors = {
            inner: decode(manifest.tensors[name], files[manifest.tensors[name].member]).dense()
            for inner, name in segment.tensors.items()
        }
        whole = onnx.load_from_string(with_initializers(files[segment.member], tensors))
        onnx.checker.check_model(whole, full_check=True)
