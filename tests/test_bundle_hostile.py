"""A bundle from a stranger is refused with a reason, before anything of it runs and before it takes memory."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import SPARSE, mlp_bundle, ternary_mlp
from hostile import fuzz, members, rewritten
from onnx import TensorProto, helper

from l0compress import capture, export_bundle
from l0compress.errors import InputError, RunError
from l0compress_runtime import load
from l0compress_runtime.archive import write_zip
from l0compress_runtime.bundle import read_manifest


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    return mlp_bundle(tmp_path_factory.mktemp("bundle") / "model.l0c").path.read_bytes()


@pytest.fixture(scope="module")
def ternary(tmp_path_factory) -> bytes:
    graph = capture(ternary_mlp(), (torch.randn(2, 48),))
    return export_bundle(graph, tmp_path_factory.mktemp("ternary") / "model.l0c", settings=SPARSE).path.read_bytes()


def refused(data: bytes, folder: Path, message: str, **options: Any) -> None:
    path = folder / "hostile.l0c"
    path.write_bytes(data)
    with pytest.raises(RunError, match=message) as caught:
        load(path, **options)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"Cannot read bundle {str(path)!r}: ")
    assert "None of it was run." in str(caught.value)
    assert sorted(entry.name for entry in folder.iterdir()) == ["hostile.l0c"]


def edited(data: bytes, change: Any) -> bytes:
    files = members(data)
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    return rewritten(files, manifest)


class TestArchives:
    @pytest.mark.parametrize(
        "name",
        [
            "../outside.npz",
            "/etc/cron.npz",
            "a/../../b.npz",
            "C:\\x.npz",
            "a\\b.npz",
            ".hidden.npz",
            "x.py",
            "a" * 99 + ".npz",
        ],
    )
    def test_names_that_lead_elsewhere(self, original, tmp_path, name):
        refused(write_zip({**members(original), name: b""}), tmp_path, "which is not a bundle file")

    @pytest.mark.parametrize(
        "name", ["../", "/", "/etc/", "a/../b/", "C:\\x/", ".hidden/", "a//", "a/b/c/d/", "a" * 99 + "/"]
    )
    def test_folders_that_lead_elsewhere(self, original, tmp_path, name):
        refused(write_zip({**members(original), name: b""}), tmp_path, "which is not a bundle file")

    def test_a_folder_with_content_of_its_own(self, original, tmp_path):
        refused(
            write_zip({**members(original), "segments/": b"x"}),
            tmp_path,
            "named 'segments/', which is not a bundle file",
        )

    def test_a_member_that_the_manifest_does_not_know(self, original, tmp_path):
        refused(write_zip({**members(original), "tensors/extra.npz": b""}), tmp_path, "its manifest does not list")

    def test_a_member_that_is_missing(self, original, tmp_path):
        files = members(original)
        del files["tensors/0.npz"]
        refused(write_zip(files), tmp_path, r"has no tensors/0\.npz")

    def test_two_members_of_one_name(self, original, tmp_path):
        stream = io.BytesIO(original)
        with warnings.catch_warnings(), zipfile.ZipFile(stream, "a") as archive:
            warnings.simplefilter("ignore", UserWarning)
            archive.writestr(zipfile.ZipInfo("tensors/0.npz"), b"other")
        refused(stream.getvalue(), tmp_path, "two members with the same name")

    def test_a_bomb_that_says_how_large_it_is(self, original, tmp_path):
        bomb = write_zip({**members(original), "tensors/bomb.onnx": bytes(2**28)})
        refused(bomb, tmp_path, "would unpack to 268,")

    def test_a_bomb_that_lies_about_its_size(self, original, tmp_path):
        files = {**members(original), "tensors/bomb.onnx": bytes(2**24)}
        manifest = json.loads(files["manifest.json"])
        manifest["hashes"]["tensors/bomb.onnx"] = ""
        manifest["segments"]["s0"]["member"] = "tensors/bomb.onnx"
        data = rewritten(files, manifest)
        for packed in (struct.pack("<I", 2**24), struct.pack("<I", 2**24)):
            data = data.replace(packed, struct.pack("<I", 100))
        refused(data, tmp_path, "cannot unpack|has 100 bytes|damaged")

    def test_a_size_that_no_deflate_reaches(self, original, tmp_path):
        data = write_zip({**members(original), "tensors/big.onnx": bytes(2**22 + 3)})
        refused(
            data.replace(struct.pack("<I", 2**22 + 3), struct.pack("<I", 2**31 - 1)), tmp_path, "bytes in 4,|unpack to"
        )

    @pytest.mark.parametrize("limit_bytes", [10, 5000])
    def test_a_limit_of_the_users_own(self, original, tmp_path, limit_bytes):
        message = (
            rf"would unpack to [\d,]+ bytes, but limit_bytes allows {limit_bytes:,}\. None of it was run\. If you "
            r"trust it, load it with a larger limit: l0compress_runtime\.load\(path, limit_bytes=\.\.\.\)\.$"
        )
        refused(original, tmp_path, message, limit_bytes=limit_bytes)

    def test_encryption(self, original, tmp_path):
        # The flags of the last entry of the directory; the tensors before it are zip files themselves.
        at = original.rindex(b"PK\x01\x02") + 8
        data = original[:at] + b"\x01" + original[at + 1 :]
        refused(data, tmp_path, "has an encrypted member")

    @pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no zip at all", bytes(5000)])
    def test_files_that_are_no_zip(self, tmp_path, data):
        refused(data, tmp_path, "is not a zip file")

    def test_a_zip_without_a_manifest(self, tmp_path):
        refused(write_zip({"tensors/0.npz": b""}), tmp_path, r"has no manifest\.json")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
    @pytest.mark.parametrize("linked", [False, True])
    def test_what_is_neither_a_file_nor_a_folder_is_not_opened(self, tmp_path, linked):
        """Opening this pipe would wait for somebody to write to it."""
        pipe = tmp_path / "pipe.l0c"
        os.mkfifo(pipe)
        if linked:
            pipe = tmp_path / "link.l0c"
            pipe.symlink_to(tmp_path / "pipe.l0c")
        for read in (load, read_manifest):
            with pytest.raises(RunError, match=r"l0c': is neither a file nor a folder\. None of it was run\."):
                read(pipe)

    @pytest.mark.parametrize("name", ["notes.txt", "Thumbs.db", "tensors/0.npz.bak", "a/b/c/d/e.npz"])
    def test_a_folder_with_files_that_are_not_of_a_bundle(self, original, tmp_path, name):
        with zipfile.ZipFile(io.BytesIO(original)) as archive:
            archive.extractall(tmp_path / "folder")
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(b"")
        with pytest.raises(RunError, match=f"has '{name}', which is not a bundle file"):
            load(tmp_path / "folder")

    def test_a_folder_with_a_link(self, original, tmp_path):
        folder, secret = tmp_path / "folder", tmp_path / "secret"
        with zipfile.ZipFile(io.BytesIO(original)) as archive:
            archive.extractall(folder)
        secret.write_bytes((folder / "tensors/0.npz").read_bytes())
        (folder / "tensors/0.npz").unlink()
        (folder / "tensors/0.npz").symlink_to(secret)
        with pytest.raises(RunError, match=r"'tensors/0\.npz', which is not a bundle file"):
            load(folder)

    def test_a_folder_that_is_a_link(self, original, tmp_path):
        folder = tmp_path / "folder"
        with zipfile.ZipFile(io.BytesIO(original)) as archive:
            archive.extractall(folder)
        (folder / "tensors").rename(tmp_path / "elsewhere")
        (folder / "tensors").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RunError, match=r"has a folder that is a link"):
            load(folder)


class TestManifests:
    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("format",), "zip", "format is 'zip'"),
            (("version",), 1, r"is of format version 1; this is a reader of versions 2 to 4\."),
            (("version",), 5, r"is of format version 5; this is a reader of versions 2 to 4\."),
            (("version",), "1", "version is '1'"),
            (("inputs", 0, "dtype"), "object", r"inputs\[0\]\.dtype is 'object'"),
            (("inputs", 0, "shape"), [1.5], "a list of sizes and names"),
            (("inputs", 0, "shape"), ["batch", -48], "sizes from 0"),
            (("tensors", "0.weight", "shape"), [-1, 48], "integers from 0"),
            (("tensors", "0.weight", "shape"), [2**30, 2**30], "shape is"),
            (("tensors", "0.weight", "shape"), [40, 48, 2], "has a weight of shape"),
            (("tensors", "0.weight", "nonzeros"), 10**9, "nonzeros"),
            (("tensors", "0.weight", "member"), "../x.npz", "no hash"),
            (("tensors", "0.weight", "storage"), "complex128", "storage is 'complex128'"),
            (("tensors", "0.weight", "scale_axis"), 0, "scale_axis"),
            (("tensors", "0.weight", "storage"), "ternary", "scale_axis is None"),
            (("tensors", "0.bias", "storage"), "ternary", "scale_axis is None"),
            (("layers", "l0", "kind"), "exec", "kind is 'exec'"),
            (("layers", "l0", "kind"), "conv", "cannot be made"),
            (("layers", "l0", "bias"), "0.weight", "bias is float32"),
            (("layers", "l0", "transposed"), True, "bias is float32"),
            (("layers", "l0", "transposed"), "yes", "true or false"),
            (("layers", "l0", "activation"), "os.system", "activation is"),
            (("layers", "l0", "weight"), "none", "tensor 'none' that does not exist"),
            (("layers", "l0", "dense"), "s0", "no segment that computes the same"),
            (("layers", "l0", "groups"), 0, "groups is 0"),
            (("layers", "l0", "flat_from"), -1, "flat_from is -1, expected an integer from 0 to 16"),
            (("layers", "l0", "flat_from"), [1], "flat_from is"),
            (("layers", "l0", "kind"), "recurrent", "an object for a recurrent layer, and null otherwise"),
            (("layers", "l0", "inputs"), ["input", "input"], "expected different values"),
            (("layers", "l0", "inputs"), ["input", "other"], "expected one value, as outputs"),
            (("layers", "l0", "outputs"), [], "expected one value, as outputs"),
            (("layers", "l0", "outputs"), "input", "outputs is 'input', expected a list"),
            (("layers", "l0", "padding"), [[0, -1]], "a list of pairs of sizes"),
            (("segments", "s0", "tensors"), {"0.weight": "none"}, "tensor 'none' that does not exist"),
            (("segments", "s0", "inputs"), ["elsewhere"], "before it is made"),
            (("plans", "split"), [], "does not make the output"),
            (("plans", "split"), [{"part": "none", "engine": None}], "a step 'none' that does not exist"),
            (("plans",), [], "an object is expected"),
            (("choices",), [[1, "none"]], "choices name no plan"),
            (("choices",), [], "choices name no plan"),
            (("disabled_optimizers",), ["ConstantFolding"], "expected some of SkipLayerNormFusion"),
            (("disabled_optimizers",), "SkipLayerNormFusion", "expected a list"),
            (("choices",), [[0, "split"]], "batch sizes of at least 1"),
            (("hashes",), {}, "no hash"),
            (
                ("layer_timings",),
                [{"layer": "l0", "batch_size": 1, "median_ms": {"scipy": -1}}],
                "a number of at least 0",
            ),
        ],
    )
    def test_values_that_are_wrong(self, original, tmp_path, path, value, message):
        def change(manifest: Any) -> None:
            *way, last = path
            for key in way:
                manifest = manifest[key]
            assert last in manifest or isinstance(last, int)
            manifest[last] = value

        refused(edited(original, change), tmp_path, message)

    def test_only_a_linear_layer_flattens_its_input(self, original, tmp_path):
        def change(manifest: Any) -> None:
            manifest["layers"]["l0"].update(kind="embedding", flat_from=1)

        refused(edited(original, change), tmp_path, "flat_from is 1, expected null except for a linear layer")

    @pytest.mark.parametrize("flat_from", [0, 2, 16])
    def test_an_input_that_is_flattened_to_another_width(self, original, tmp_path, flat_from):
        def change(manifest: Any) -> None:
            manifest["layers"]["l0"]["flat_from"] = flat_from

        path = tmp_path / "flat.l0c"
        path.write_bytes(edited(original, change))
        with pytest.raises(InputError, match=r"layer '0' with the input input: a sparse linear layer takes float32"):
            load(path).run({"input": np.zeros((3, 48), np.float32)})

    def test_the_version_before_knew_no_flattening_and_is_read(self, original, tmp_path):
        def change(manifest: Any) -> None:
            manifest["version"] = 2
            for layer in manifest["layers"].values():
                del layer["flat_from"]
            del manifest["disabled_optimizers"]

        path = tmp_path / "before.l0c"
        path.write_bytes(edited(original, change))
        assert load(path).run({"input": np.zeros((3, 48), np.float32)})["output_0"].shape == (3, 10)

    def test_a_step_twice(self, original, tmp_path):
        def change(manifest: Any) -> None:
            manifest["plans"]["split"] *= 2

        refused(edited(original, change), tmp_path, "makes a value twice|before it is made")

    @pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000])
    def test_texts_that_are_no_manifest(self, original, tmp_path, text):
        refused(write_zip({**members(original), "manifest.json": text}), tmp_path, r"manifest\.json")

    def test_a_wrong_hash(self, original, tmp_path):
        files = members(original)
        files["tensors/0.npz"] += b"\0"
        refused(write_zip(files), tmp_path, r"tensors/0\.npz is damaged: its SHA-256")

    def test_a_constant_that_would_need_all_memory(self, original, tmp_path):
        """A matrix without a nonzero costs nothing in the file, and 64 GiB where it is dense."""

        def change(manifest: Any) -> None:
            manifest["tensors"]["0.weight"] |= {"shape": [2**17, 2**17]}
            manifest["choices"] = [[1, "whole"]]

        message = r"needs 68,719,\d+,\d+ bytes for its constants, but limit_bytes allows .* with a larger limit"
        refused(edited(original, change), tmp_path, message)

    def test_tuning_makes_no_input_larger_than_it_should_be(self, original, tmp_path):
        def change(manifest: Any) -> None:
            manifest["inputs"][0]["shape"] = ["batch", 2**31 - 1]

        refused(edited(original, change), tmp_path, "too large to time", tune=True)

    def test_a_layer_with_more_rows_than_memory(self, original, tmp_path):
        def change(manifest: Any) -> None:
            manifest["tensors"]["0.weight"] |= {"shape": [2**30, 2]}

        refused(edited(original, change), tmp_path, "bytes for its constants")


class TestGraphs:
    def replaced(self, original: bytes, model: Any) -> bytes:
        files = members(original)
        manifest = json.loads(files["manifest.json"])
        segment = manifest["segments"][manifest["plans"]["whole"][0]["part"]]
        files[segment["member"]] = model if isinstance(model, bytes) else model.SerializeToString()
        manifest["choices"] = [[1, "whole"]]
        return rewritten(files, manifest)

    def model(self, node: Any, initializers: tuple[Any, ...] = ()) -> Any:
        x = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 48])
        y = helper.make_tensor_value_info("output_0", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "g", [x], [y], initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def test_data_in_another_file(self, original, tmp_path):
        tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="../../../etc/passwd")
        model = self.model(helper.make_node("Add", ["input", "w"], ["output_0"]), (tensor,))
        refused(self.replaced(original, model), tmp_path, "refers to data in another file")

    def test_operators_with_code_of_their_own(self, original, tmp_path):
        model = self.model(helper.make_node("PyOp", ["input"], ["output_0"], domain="ai.onnx.contrib"))
        refused(self.replaced(original, model), tmp_path, "uses operators of b'ai.onnx.contrib'")

    def test_other_inputs_than_the_manifest_says(self, original, tmp_path):
        model = self.model(helper.make_node("Relu", ["input"], ["output_0"]))
        model.graph.output[0].name = model.graph.node[0].output[0] = "other"
        refused(self.replaced(original, model), tmp_path, "has different inputs or outputs")

    def test_what_is_not_a_tensor(self, original, tmp_path):
        model = self.model(helper.make_node("SequenceConstruct", ["input"], ["output_0"]))
        model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("output_0", TensorProto.FLOAT, None))
        refused(self.replaced(original, model), tmp_path, "something other than a tensor")

    @pytest.mark.parametrize("model", [b"", b"\x00", b"\xff" * 50, b"\x3a\xff\xff\xff\xff\x7f"])
    def test_bytes_that_are_no_model(self, original, tmp_path, model):
        refused(self.replaced(original, model), tmp_path, "is not an ONNX model|cannot be loaded|different inputs")


class TestTernary:
    """Bits of a stranger are signs or nothing; the first weight has codes, the second gaps and signs."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scale_axis": None}, "scale_axis is None, expected a dimension of the tensor for int8 or ternary"),
            ({"scale_axis": 2}, "scale_axis is 2"),
            ({"scale_axis": -1}, "scale_axis is -1"),
            ({"shape": []}, "shape is|scale_axis is 0"),
            ({"nonzeros": None}, "nonzeros is None, expected how many values of a ternary tensor are not zero"),
            ({"nonzeros": 1}, "holds 6140 values that are not zero, expected 1"),
            ({"scale_axis": 1}, r"holds an array that is not float32 \(48,\) in 1024 bytes"),
            ({"shape": [256, 60]}, r"holds an array that is not uint8 \(3840,\) in 3072 bytes"),
            ({"shape": [2**20, 2**20]}, "bytes for its constants"),
            ({"storage": "int8"}, "holds .*codes.npy.*expected"),
            ({"storage": "float32", "scale_axis": None}, "expected .*gaps.npy"),
            ({"dtype": "float64"}, "storage is 'ternary'"),
        ],
    )
    def test_a_manifest_that_does_not_fit(self, ternary, tmp_path, change, message):
        refused(edited(ternary, lambda manifest: manifest["tensors"]["0.weight"].update(change)), tmp_path, message)

    def test_a_scalar_has_no_axis_of_scales(self, ternary, tmp_path):
        def change(manifest: Any) -> None:
            manifest["tensors"]["0.weight"].update(shape=[], nonzeros=1, storage="int8", scale_axis=0)

        refused(edited(ternary, change), tmp_path, "scale_axis is 0, expected a dimension of the tensor")

    @pytest.mark.parametrize(
        ("weight", "array", "change", "message"),
        [
            ("0.weight", "codes.npy", lambda data: data[:-1] + b"\xff", "holds two bits that are no ternary value"),
            (
                "0.weight",
                "codes.npy",
                lambda data: data[:128] + bytes(3072),
                "holds 0 values that are not zero, expected 6140",
            ),
            ("0.weight", "codes.npy", lambda data: data[:-1], "holds an array that is not uint8"),
            ("0.weight", "scale.npy", lambda data: data[:-4] + b"\x00\x00\x80\x7f", "a scale that is not finite"),
            ("2.weight", "signs.npy", lambda data: data[:-1] + b"\xff", "holds more signs than values"),
            ("2.weight", "gaps.npy", lambda data: data[:-1] + b"\xff", "positions, expected 3323"),
            ("2.weight", "signs.npy", lambda data: data + b"\x00", "holds an array that is not uint8"),
        ],
    )
    def test_arrays_that_are_damaged(self, ternary, tmp_path, weight, array, change, message):
        files = members(ternary)
        manifest = json.loads(files["manifest.json"])
        member = manifest["tensors"][weight]["member"]
        arrays = members(files[member])
        arrays[array] = change(arrays[array])
        files[member] = write_zip(arrays)
        refused(rewritten(files, manifest), tmp_path, message)

    def test_arrays_of_both_forms_at_once(self, ternary, tmp_path):
        files = members(ternary)
        manifest = json.loads(files["manifest.json"])
        one, other = (manifest["tensors"][name]["member"] for name in ("0.weight", "2.weight"))
        files[one] = write_zip({**members(files[other]), **members(files[one])})
        refused(rewritten(files, manifest), tmp_path, r"holds \['codes.npy', 'gaps.npy'")

    def test_a_reader_of_the_version_before_refuses_it_by_its_version(self, ternary, original):
        assert json.loads(members(ternary)["manifest.json"])["version"] == 4
        assert json.loads(members(original)["manifest.json"])["version"] == 3


@pytest.mark.mostly_slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["original", "ternary"])
def test_hundreds_of_random_mutations(request, tmp_path, seed, kind):
    with np.errstate(all="ignore"):
        seen = fuzz(request.getfixturevalue(kind), 100, seed, tmp_path / "hostile.l0c")
    assert seen["refused"] > 50
