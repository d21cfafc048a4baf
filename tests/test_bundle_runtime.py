"""A bundle runs without torch, from many threads, and on the engines that there are."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bundles import NETWORKS, SPARSE, TwoOutputs, mlp, mlp_bundle, randomised
from hostile import members, rewritten
from torch import nn
from torch.export import Dim

from l0compress import BundleSettings, capture, export_bundle, export_onnx
from l0compress.errors import InputError, NotEqualError, RunError
from l0compress.export.bundle_session import BundleSession
from l0compress.export.session import OnnxSession
from l0compress_runtime import load
from l0compress_runtime.bundle import read_manifest
from l0compress_runtime.engines import find
from l0compress_runtime.sessions import open_session

NO_TORCH = """
import sys

# As in an environment without them: find_spec finds nothing, and an import raises ModuleNotFoundError.
absent = ("torch", "l0compress", "onnx", "onnxscript", "typer", "rich", "safetensors")
sys.modules.update(dict.fromkeys(absent))
import numpy as np
import l0compress_runtime
bundle = l0compress_runtime.load(sys.argv[1], threads=2)
x = np.load(sys.argv[2])
np.save(sys.argv[3], bundle.run({"input": x})["output_0"])
print([name for name in absent if sys.modules[name]])
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return mlp_bundle(tmp_path_factory.mktemp("bundle") / "model.l0c").path


FUSION = ("SkipLayerNormFusion",)


def expected(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return mlp().double()(torch.from_numpy(x).double()).numpy()


def samples(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 48)).astype(np.float32)


class TestWithoutTorch:
    def test_it_runs_where_neither_torch_nor_l0compress_can_be_imported(self, path, tmp_path):
        np.save(tmp_path / "x.npy", samples(5))
        arguments = [sys.executable, "-c", NO_TORCH, path, tmp_path / "x.npy", tmp_path / "y.npy"]
        done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True, check=False)
        assert done.stdout == "[]\n", done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected(samples(5)), atol=1e-5)

    def test_nothing_asks_for_torch_or_the_rest_of_l0compress_even_where_they_are(self, path):
        code = f"import sys, l0compress_runtime as r; r.load({str(path)!r}); print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout == "False\n"
        packages = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert packages.isdisjoint({"torch", "l0compress", "onnx", "onnxscript", "typer", "rich"})
        assert packages.issuperset({"numpy", "scipy", "onnxruntime", "l0compress_runtime"})


def test_the_manifest_alone_is_read_without_the_parts(path, tmp_path):
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "alone.l0c", "w") as alone:
        alone.writestr("manifest.json", whole.read("manifest.json"))
    assert read_manifest(tmp_path / "alone.l0c") == load(path).manifest
    with pytest.raises(RunError, match=r"Cannot read bundle .*none\.l0c': there is no such file or folder\."):
        read_manifest(tmp_path / "none.l0c")


class TestRuns:
    @pytest.mark.parametrize("batch_size", [1, 2, 33])
    def test_any_batch(self, path, batch_size):
        got = load(path).run({"input": samples(batch_size)})
        np.testing.assert_allclose(got["output_0"], expected(samples(batch_size)), atol=1e-5)

    @pytest.mark.parametrize("engine", ["scipy", "dense"])
    def test_kinds_of_arrays(self, path, tmp_path, engine):
        np.save(tmp_path / "x.npy", samples(3))
        bundle = (
            load(path, engine="scipy") if engine == "scipy" else load(variant(path, choices=[[1, "whole"]]), threads=1)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            matrix = np.asmatrix(samples(3))
        given = {"input": matrix}
        for x in (matrix, np.load(tmp_path / "x.npy", mmap_mode="r"), np.ma.masked_array(samples(3))):
            given["input"] = x
            np.testing.assert_allclose(bundle.run(given)["output_0"], expected(samples(3)), atol=1e-5)
            assert given["input"] is x

    def test_names_dtypes_and_shapes(self, tmp_path):
        graph = capture(randomised(TwoOutputs()), (torch.randn(2, 20), torch.randn(2, 1)))
        export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE)
        bundle = load(tmp_path / "model.l0c")
        assert [port.described() for port in bundle.inputs] == ["float32 (batch, 20)", "float32 (batch, 1)"]
        assert [port.name for port in bundle.outputs] == ["hidden", "out", "again"]

    def test_a_folder_with_the_same_members(self, path, tmp_path):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "unpacked")
        x = {"input": samples(3)}
        np.testing.assert_array_equal(load(tmp_path / "unpacked").run(x)["output_0"], load(path).run(x)["output_0"])

    def test_what_is_hidden_in_a_folder_is_not_looked_at(self, path, tmp_path):
        folder = tmp_path / ".cache"
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        (folder / ".DS_Store").write_bytes(b"a desktop's")
        (folder / "tensors" / "._0.npz").symlink_to(tmp_path / "nowhere")
        (folder / ".git" / "objects").mkdir(parents=True)
        (folder / ".git" / "objects" / "an object").write_bytes(b"")
        assert load(folder).manifest == load(path).manifest

    def test_a_zip_of_the_folder_names_its_folders(self, path, tmp_path):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "unpacked")
        again = Path(shutil.make_archive(str(tmp_path / "again"), "zip", tmp_path / "unpacked"))
        with zipfile.ZipFile(again) as archive:
            assert "segments/" in archive.namelist()
        x = {"input": samples(3)}
        np.testing.assert_array_equal(load(again).run(x)["output_0"], load(path).run(x)["output_0"])

    def test_links_to_a_bundle(self, path, tmp_path):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "unpacked")
        for number, target in enumerate((path, tmp_path / "unpacked")):
            link = tmp_path / f"link{number}"
            link.symlink_to(target)
            assert load(link).manifest == load(path).manifest

    def test_inputs_stay_as_they_were_and_outputs_are_the_callers_own(self, path):
        bundle, x = load(path), samples(3)
        first = bundle.run({"input": x})["output_0"]
        np.testing.assert_array_equal(x, samples(3))
        kept = first.copy()
        bundle.run({"input": samples(3, seed=1)})
        np.testing.assert_array_equal(first, kept)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "missing input, unexpected none"),
            ({"x": samples(1)}, "missing input, unexpected x"),
            ({"input": samples(1), "x": samples(1)}, "missing none, unexpected x"),
            (
                {"input": samples(1).astype(np.float64)},
                r"input 'input' is float64 \(1, 48\), but the model takes float32",
            ),
            ({"input": samples(1)[:, :5]}, r"is float32 \(1, 5\), but the model takes float32 \(batch, 48\)"),
            ({"input": samples(1)[0]}, r"is float32 \(48,\)"),
            ({"input": [1.0]}, "is list"),
            ({"input": samples(1).tolist()}, "is list"),
            ({"input": samples(1).astype(">f4")}, r"is >f4 \(1, 48\), but the model takes float32 \(batch, 48\)"),
            ({1: samples(1)}, "missing input, unexpected 1"),
            (None, "the inputs of a run are NoneType, but must be a dict"),
            (samples(1), "the inputs of a run are ndarray, but must be a dict"),
            ([("input", samples(1))], "the inputs of a run are list, but must be a dict"),
        ],
    )
    @pytest.mark.parametrize("plans", [("split",), ("whole",), ("split", "whole"), ("whole", "split")])
    def test_inputs_that_do_not_fit(self, path, inputs, message, plans):
        bundle = load(variant(path, choices=[[8**position, plan] for position, plan in enumerate(plans)]))
        with pytest.raises(InputError, match=message):
            bundle.run(inputs)

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("engine", [engine.name for engine in find()])
    def test_an_index_out_of_range_names_the_layer_and_what_it_read(self, tmp_path, engine):
        model, call = NETWORKS["attention"]()
        export_bundle(capture(model, call.args), tmp_path / "model.l0c", settings=SPARSE)
        bundle = load(tmp_path / "model.l0c", threads=1, engine=engine)
        message = (
            r"^layer 'embedding' with the input tokens: a sparse embedding takes integers from -50 to 49, but was "
            r"given int64 from 50 to 50\. Nothing was computed\. Pass indices in that range\.$"
        )
        with pytest.raises(InputError, match=message):
            bundle.run({"tokens": np.full((2, 6), 50)})

    @pytest.mark.parametrize("plan", ["split", "whole"])
    def test_any_mapping_of_names_to_arrays(self, path, tmp_path, plan):
        bundle = load(variant(path, choices=[[1, plan]]))
        np.savez(tmp_path / "inputs.npz", input=samples(3))
        with np.load(tmp_path / "inputs.npz") as inputs:
            np.testing.assert_array_equal(bundle.run(inputs)["output_0"], bundle.run({"input": samples(3)})["output_0"])

    def test_four_threads_at_once(self, path):
        bundle, wrong = load(path, threads=2), []
        inputs = [samples(1 + k % 3, seed=k) for k in range(12)]
        outputs = [bundle.run({"input": x})["output_0"] for x in inputs]

        def work(first: int) -> None:
            for turn in range(100):
                k = (first + turn) % len(inputs)
                if not np.array_equal(bundle.run({"input": inputs[k]})["output_0"], outputs[k]):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    @pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy, copy.copy])
    def test_another_process_loads_it_itself(self, path, copied):
        bundle = load(path)
        with pytest.raises(InputError, match=r"cannot be pickled or copied.* Call l0compress_runtime\.load in "):
            copied(bundle)
        assert bundle.run({"input": samples(1)})

    def test_values_are_let_go_when_nothing_needs_them(self, path):
        bundle = load(path)
        stages = bundle._ways[0][1].stages
        assert {name for stage in stages for name in stage.frees} >= {"relu", "gelu"}
        assert all("output_0" not in stage.frees for stage in stages)


@pytest.mark.slow
class TestChoices:
    def test_measured_bundles_are_equal_and_say_what_was_measured(self, tmp_path):
        graph = capture(mlp(), (torch.randn(2, 48),))
        exported = export_bundle(graph, tmp_path / "model.l0c", batch_sizes=(1, 16), settings=BundleSettings(threads=1))
        manifest = exported.manifest
        assert [size for size, _ in manifest.choices] == [1, 16]
        assert {(timing.layer, timing.batch_size) for timing in manifest.layer_timings} == {
            (layer, size) for layer in manifest.layers for size in (1, 16)
        }
        assert all({"dense", "scipy"} <= timing.median_ms.keys() for timing in manifest.layer_timings)
        for timing in manifest.plan_timings:
            plan = dict(manifest.choices)[timing.batch_size]
            assert timing.chosen_ms <= timing.dense_ms
            assert (plan == "whole") == (timing.chosen_ms == timing.dense_ms)
        bundle = load(tmp_path / "model.l0c")
        for batch_size in (1, 3, 4, 5, 40):
            x = samples(batch_size)
            np.testing.assert_allclose(bundle.run({"input": x})["output_0"], expected(x), atol=1e-5)

    @pytest.mark.parametrize(
        ("batch_size", "chosen"), [(1, 1), (4, 1), (5, 16), (40, 16), (64, 16), (65, 256), (999, 256)]
    )
    def test_a_run_takes_the_choice_of_the_nearest_batch_size(self, path, batch_size, chosen):
        plans = plans_of(path) | {"mixed": mixed(path)}
        bundle = load(variant(path, plans=plans, choices=[[1, "whole"], [16, "split"], [256, "mixed"]]), threads=1)
        way = bundle._way_for({"input": samples(batch_size)})
        assert way is dict(bundle._ways)[chosen]
        np.testing.assert_allclose(
            bundle.run({"input": samples(batch_size)})["output_0"], expected(samples(batch_size)), atol=1e-5
        )

    def test_tuning_chooses_anew_and_computes_the_same(self, path):
        bundle = load(path, threads=1, tune=True)
        assert set(bundle.plans) == {1}
        np.testing.assert_allclose(bundle.run({"input": samples(4)})["output_0"], expected(samples(4)), atol=1e-5)

    def test_an_engine_can_be_asked_for(self, path):
        assert set(load(path, engine="scipy").engines()[1].values()) == {"scipy"}
        with pytest.raises(InputError, match="there is no engine 'blas'"):
            load(path, engine="blas")

    def test_an_engine_that_is_asked_for_runs_also_what_was_chosen_to_be_dense(self, path):
        plans = plans_of(path) | {"mixed": mixed(path)}
        choices = [[1, "whole"], [16, "mixed"], [64, "split"]]
        bundle = load(variant(path, plans=plans, choices=choices), threads=1, engine="scipy")
        assert [set(engines.values()) for engines in bundle.engines().values()] == [{"scipy"}] * 3
        np.testing.assert_allclose(bundle.run({"input": samples(4)})["output_0"], expected(samples(4)), atol=1e-5)

    def test_without_a_plan_of_all_layers_an_engine_runs_those_that_there_are(self, path):
        other = variant(path, plans={"mixed": mixed(path)}, choices=[[1, "mixed"]])
        bundle = load(other, threads=1, engine="scipy")
        assert [step.engine for step in bundle.plans[1] if step.engine] == ["scipy"] * 3

    def test_tuning_with_an_engine_chooses_between_it_and_dense(self, path, monkeypatch):
        among = []

        def best_plan(parts, batch_size, engines):
            among.append((batch_size, engines))
            return parts.manifest.plans["whole"]

        monkeypatch.setattr("l0compress_runtime.bundle.best_plan", best_plan)
        bundle = load(path, engine="scipy", tune=True)
        assert among == [(1, ["scipy"])]
        assert set(bundle.engines()[1].values()) == {"dense"}

    @pytest.mark.parametrize(("split_ms", "chosen"), [(0.94, "scipy"), (0.96, "dense"), (1.5, "dense")])
    def test_tuning_cuts_the_model_where_it_clearly_gains(self, path, monkeypatch, split_ms, chosen):
        monkeypatch.setattr(
            "l0compress_runtime.tuning.layer_medians",
            lambda parts, *_: {name: {"scipy": 1.0} for name in parts.manifest.layers},
        )
        monkeypatch.setattr(
            "l0compress_runtime.tuning.medians_ms", lambda runs, **_: dict.fromkeys(runs, split_ms) | {"whole": 1.0}
        )
        assert set(load(path, tune=True).engines()[1].values()) == {chosen}

    @pytest.mark.parametrize(("without_ms", "disabled"), [(0.94, FUSION), (0.96, ())])
    def test_a_fusion_that_makes_the_dense_model_slower_is_left_out(self, tmp_path, monkeypatch, without_ms, disabled):
        monkeypatch.setattr(
            "l0compress_runtime.tuning.medians_ms",
            lambda runs, **_: {name: {"without": without_ms}.get(name, 1.0) for name in runs},
        )
        monkeypatch.setattr(
            "l0compress.export.choosing.medians_ms",
            lambda runs, **_: {name: {"dense": 4.0}.get(name, 3.0) for name in runs},
        )
        model, x = randomised(Normed()), torch.randn(2, 5, 32)
        settings = BundleSettings(threads=1)
        exported = export_bundle(capture(model, (x,)), tmp_path / "m.l0c", batch_sizes=2, settings=settings)
        assert exported.manifest.disabled_optimizers == disabled
        assert ("SkipLayerNormFusion, which makes them slower" in " ".join(exported.lines())) == bool(disabled)
        (timing,) = exported.manifest.plan_timings
        assert (timing.dense_ms, timing.chosen_ms) == ((4.0, 3.0) if disabled else (3.0, 3.0))
        for bundle in (load(tmp_path / "m.l0c"), load(tmp_path / "m.l0c", tune=True)):
            with torch.no_grad():
                np.testing.assert_allclose(bundle.run({"x": x.numpy()})["output_0"], model(x).numpy(), atol=1e-5)

    @pytest.mark.parametrize("disabled", [(), FUSION])
    def test_what_is_left_out_is_left_out(self, tmp_path, disabled):
        export_onnx(capture(randomised(Normed()), (torch.randn(2, 5, 32),)), tmp_path / "m.onnx")
        options = open_session(str(tmp_path / "m.onnx"), disabled=disabled).get_session_options()
        options.optimized_model_filepath = str(tmp_path / "fused.onnx")
        onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
        operators = {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}
        assert ("SkipLayerNormalization" in operators) == (not disabled)
        assert disabled == () or {"Add", "LayerNormalization"} <= operators

    def test_a_layer_that_an_engine_does_not_support_runs_on_the_default_one_and_says_so(self, tmp_path):
        model, call = NETWORKS["attention"]()
        export_bundle(capture(model, call.args), tmp_path / "model.l0c", settings=SPARSE)
        bundle = load(tmp_path / "model.l0c", threads=1, engine="torch")
        kinds = {layer.name: layer.kind for layer in bundle.manifest.layers.values()}
        assert set(kinds.values()) == {"linear", "embedding"}
        wanted = {name: "scipy" if kind == "embedding" else "torch" for name, kind in kinds.items()}
        assert bundle.engines() == {1: wanted}
        tokens = call.args[0]
        with torch.no_grad():
            np.testing.assert_allclose(
                next(iter(bundle.run({bundle.inputs[0].name: tokens.numpy()}).values())), model(tokens), atol=1e-4
            )

    def test_an_engine_that_is_not_here_is_replaced_by_the_fastest_that_is(self, path):
        split = [step | {"engine": step["engine"] and "elsewhere"} for step in plans_of(path)["split"]]
        layers = [step["part"] for step in split if step["engine"]]
        timings = [
            {"layer": layers[0], "batch_size": 1, "median_ms": {"elsewhere": 1.0, "dense": 2.0, "scipy": 3.0}},
            {"layer": layers[1], "batch_size": 1, "median_ms": {"elsewhere": 1.0, "dense": 3.0, "scipy": 2.0}},
        ]
        other = variant(path, plans={"split": split}, choices=[[1, "split"]], layer_timings=timings)
        bundle = load(other, threads=1)
        engines = [step.engine for step in bundle.plans[1] if step.engine]
        assert engines == ["dense", "scipy", "scipy"]
        np.testing.assert_allclose(bundle.run({"input": samples(4)})["output_0"], expected(samples(4)), atol=1e-5)


def plans_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads(members(path.read_bytes())["manifest.json"])["plans"]


def mixed(path: Path) -> list[dict[str, Any]]:
    """The plan of all layers, every one but the first dense."""
    split = plans_of(path)["split"]
    first = next(position for position, step in enumerate(split) if step["engine"])
    return [step | {"engine": step["engine"] and "dense"} if at > first else step for at, step in enumerate(split)]


def variant(path: Path, **entries: Any) -> Path:
    """A bundle beside another one, with other entries in its manifest."""
    files = members(path.read_bytes())
    data = rewritten(files, json.loads(files["manifest.json"]) | entries)
    other = path.with_name(f"{hashlib.sha256(data).hexdigest()}.l0c")
    other.write_bytes(data)
    return other


class TestArguments:
    """They are refused before the bundle is looked at, so that no bundle takes what another one refuses."""

    @pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, [2], 10**9])
    def test_threads(self, threads):
        with pytest.raises(InputError, match=r"threads is .*, but must be an integer from 1 to 1024, or None\."):
            load("none.l0c", threads=threads)

    @pytest.mark.parametrize("limit_bytes", [0, -1, 1e9, "x", True])
    def test_limit_bytes(self, limit_bytes):
        with pytest.raises(InputError, match=r"limit_bytes is .*, but must be an integer from 1, or None\."):
            load("none.l0c", limit_bytes=limit_bytes)

    def test_whole_numbers_of_numpy_are_whole_numbers(self, path):
        x = {"input": samples(3)}
        bundle = load(path, threads=np.int64(1), limit_bytes=np.int64(10**8))
        np.testing.assert_allclose(bundle.run(x)["output_0"], expected(samples(3)), atol=1e-5)

    @pytest.mark.parametrize("wrong", [None, 1, b"model.l0c", ["model.l0c"]])
    @pytest.mark.parametrize("read", [load, read_manifest])
    def test_paths(self, wrong, read):
        with pytest.raises(InputError, match=rf"the path of a bundle is {type(wrong).__name__}, but must be a string"):
            read(wrong)

    @pytest.mark.parametrize("name", ["a\0b.l0c", "a" * 5000])
    def test_paths_that_no_file_can_have(self, name):
        with pytest.raises(RunError, match=r"Cannot read bundle .*: cannot be read: .*None of it was run\."):
            load(name)

    @pytest.mark.parametrize("engine", [["scipy"], 1, {}])
    def test_engines(self, path, engine):
        with pytest.raises(InputError, match=r"there is no engine .* Nothing was run\. Choose from scipy, numba"):
            load(path, engine=engine)


class Normed(nn.Module):
    """A product that is normalised after what it had read was added, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.linear(x))


class Placed(nn.Module):
    """Tokens and their positions, of which there are eight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(50, 32), nn.Embedding(8, 32), nn.Linear(32, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(ids) + self.places(torch.arange(ids.shape[1])))


@pytest.mark.slow
def test_inputs_are_made_up_in_the_sizes_that_the_model_was_captured_with(tmp_path):
    """A length of sixteen, which stands for what nobody has said, is beyond the positions."""
    free = {"ids": {0: Dim("batch"), 1: Dim("length", max=8)}}
    graph = capture(randomised(Placed()), (torch.randint(0, 50, (3, 6)),), dynamic=free)
    exported = export_bundle(graph, tmp_path / "m.l0c", settings=BundleSettings(measure=False))
    assert BundleSession(exported.path).example_call(5).kwargs["ids"].shape == (5, 6)
    assert load(exported.path, tune=True).engines().keys() == {1}
    export_onnx(graph, tmp_path / "m.onnx")
    assert OnnxSession(tmp_path / "m.onnx").example_call(5).kwargs["ids"].shape == (5, 6)


class TestExport:
    def test_a_bundle_that_is_not_equal_is_refused_and_leaves_nothing(self, tmp_path):
        graph = capture(mlp(), (torch.randn(2, 48),))
        with pytest.raises(NotEqualError):
            export_bundle(graph, tmp_path / "model.l0c", reference=lambda x: graph.module()(x) + 1, settings=SPARSE)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"storage": "float8"}, "no storage 'float8'"),
            ({"threads": 0}, "threads=0: expected an integer from 1 to 1,024"),
            ({"threads": 100_000}, "threads=100000: expected an integer from 1 to 1,024"),
            ({"engines": ("blas",)}, "no engine 'blas'"),
        ],
    )
    def test_settings_that_are_wrong(self, tmp_path, options, message):
        with pytest.raises(InputError, match=message):
            export_bundle(capture(mlp(), (torch.randn(2, 48),)), tmp_path / "m.l0c", settings=BundleSettings(**options))

    @pytest.mark.slow
    def test_a_weight_beyond_float16(self, tmp_path):
        model = mlp()
        model[0].weight.data[0, 0] = 1e5
        graph = capture(model, (torch.randn(2, 48),))
        with pytest.raises(InputError, match=r"'0.weight' cannot be stored as float16.*Choose bfloat16"):
            export_bundle(graph, tmp_path / "m.l0c", settings=BundleSettings(storage="float16", measure=False))
        assert list(tmp_path.iterdir()) == []

    def test_why_nothing_runs_sparse(self, tmp_path):
        transposed = nn.ConvTranspose1d(16, 16, 3)
        nn.init.zeros_(transposed.weight)
        graph = capture(nn.Sequential(transposed), (torch.randn(2, 16, 9),))
        exported = export_bundle(graph, tmp_path / "m.l0c", settings=BundleSettings(measure=False))
        assert "0.weight: dense: ConvTranspose has no sparse form" in exported.lines()

    def test_a_layer_without_bias_has_its_name_though_the_converter_transposes_its_weight(self, tmp_path):
        layers = {"first": nn.Linear(48, 32, bias=False), "second": nn.Linear(32, 32, bias=False)}
        graph = capture(randomised(nn.Sequential(OrderedDict(layers))), (torch.randn(2, 5, 48),))
        exported = export_bundle(graph, tmp_path / "m.l0c", settings=BundleSettings(measure=False))
        assert [layer.name for layer in exported.manifest.layers.values()] == ["first", "second"]

    def test_a_layer_that_is_called_twice_is_two_layers_with_two_names(self, tmp_path):
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(48, 48)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.inner(self.inner(x).sigmoid())

        graph = capture(randomised(Twice()), (torch.randn(2, 48),))
        exported = export_bundle(graph, tmp_path / "m.l0c", settings=BundleSettings(measure=False))
        assert load(exported.path).engines() == {1: {"inner": "scipy", "inner (2)": "scipy"}}

    @pytest.mark.parametrize("batch_sizes", [(), (0,)])
    def test_batch_sizes_that_are_none(self, tmp_path, batch_sizes):
        with pytest.raises(InputError, match="batch sizes"):
            export_bundle(capture(mlp(), (torch.randn(2, 48),)), tmp_path / "m.l0c", batch_sizes=batch_sizes)

    def test_no_such_bundle(self, tmp_path):
        with pytest.raises(RunError, match=r"Cannot read bundle .*there is no such file"):
            load(tmp_path / "none.l0c")
