"""LSTM, GRU and RNN nodes as layers of a bundle: which become one, from which states, and what they compute."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from bundles import NETWORKS, SPARSE, LastStates, Recurrent, randomised, with_every_layer_on
from hostile import fuzz, members, rewritten
from torch import nn
from torch.export import Dim

from l0compress import BundleSettings, capture, export_bundle, export_onnx
from l0compress.errors import InputError, RunError
from l0compress_runtime import load
from l0compress_runtime.engines import find

pytestmark = pytest.mark.slow

# How far each storage may be off, relative to the largest output; see docs/bundle.md.
TOLERANCES = {"float32": 2e-6, "float16": 5e-3, "bfloat16": 4e-2, "int8": 5e-2}
FREE = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}
SIZES = ((1, 1), (1, 9), (4, 1), (3, 7), (33, 2))


class Last(nn.Module):
    """Of what a recurrent layer returns, the hidden states alone."""

    def forward(self, returned: tuple[torch.Tensor, Any]) -> torch.Tensor:
        return returned[0]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    """A bundle with one recurrent layer, l0, that begins with states and hands on all that it can."""
    model, call = NETWORKS["LSTM decoder"]()
    path = tmp_path_factory.mktemp("bundle") / "model.l0c"
    return export_bundle(capture(model, call.args), path, settings=SPARSE).path.read_bytes()


@pytest.mark.parametrize("storage", TOLERANCES)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_any_batch_and_length_in_every_storage(tmp_path, kind, storage):
    model = randomised(Recurrent(kind, num_layers=2, bidirectional=True))
    graph = capture(model, (torch.randn(2, 5, 16),), dynamic=FREE)
    exported = export_bundle(graph, tmp_path / "model.l0c", settings=replace(SPARSE, storage=storage))
    layers = [layer for layer in exported.manifest.layers.values() if layer.kind == "recurrent"]
    stored = [exported.manifest.tensors[weight] for layer in layers for weight in layer.weights]
    assert [(spec.storage, spec.scale_axis) for spec in stored] == 4 * [(storage, 1 if storage == "int8" else None)]
    double, bundles = copy.deepcopy(model).double(), [load(exported.path, engine=engine.name) for engine in find()]
    for batch, length in SIZES:
        x = torch.randn(batch, length, 16)
        expected = double(x.double()).detach().numpy()
        allowed = TOLERANCES[storage] * np.abs(expected).max()
        for bundle in bundles:
            np.testing.assert_allclose(bundle.run({"x": x.numpy()})["output_0"], expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("model", [lambda: LastStates(nn.LSTM, bidirectional=True), lambda: Recurrent(nn.GRU)])
def test_the_same_as_onnx_runtime(tmp_path, model):
    graph = capture(randomised(model()), (torch.randn(2, 5, 16),), dynamic=FREE)
    export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE)
    export_onnx(graph, tmp_path / "model.onnx")
    bundle, dense = load(tmp_path / "model.l0c"), onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch, length in SIZES:
        x = torch.randn(batch, length, 16)
        (expected,) = dense.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(bundle.run({"x": x.numpy()})["output_0"], expected, atol=2e-6)


def test_other_states_are_read(original):
    manifest = json.loads(members(original)["manifest.json"])
    encoder, decoder = (layer for layer in manifest["layers"].values() if layer["kind"] == "recurrent")
    assert (encoder["recurrence"]["states"], encoder["recurrence"]["makes"]) == ([0, 0], [1, 2])
    assert (decoder["recurrence"]["states"], decoder["recurrence"]["makes"]) == ([1, 2], [0])
    assert decoder["inputs"][1:] == encoder["outputs"]


def test_measured_plans_take_recurrent_layers_where_they_are_faster(tmp_path):
    graph = capture(randomised(Recurrent(nn.GRU)), (torch.randn(2, 5, 16),), dynamic=FREE)
    exported = export_bundle(graph, tmp_path / "model.l0c", batch_sizes=(1, 4), settings=BundleSettings(threads=1))
    timed = {timing.layer: timing.median_ms for timing in exported.manifest.layer_timings}
    (name,) = (name for name, layer in exported.manifest.layers.items() if layer.kind == "recurrent")
    assert {"dense", "scipy"} <= timed[name].keys() and "torch" not in timed[name]
    x = torch.randn(4, 5, 16).numpy()
    expected = load(exported.path, engine="scipy").run({"x": x})["output_0"]
    np.testing.assert_allclose(load(exported.path, tune=True).run({"x": x})["output_0"], expected, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_runs_on_the_engine_that_is_asked_for_or_on_the_default_one(tmp_path, kind):
    graph = capture(randomised(Recurrent(kind)), (torch.randn(2, 5, 16),), dynamic=FREE)
    exported = export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE)
    kinds = {layer.name: layer.kind for layer in exported.manifest.layers.values()}
    for engine in find():
        runs = {
            name: "scipy" if kind == "recurrent" and engine.name == "torch" else engine.name
            for name, kind in kinds.items()
        }
        assert load(exported.path, threads=1, engine=engine.name).engines() == {1: runs}


@pytest.mark.parametrize("size", [(0, 5, 16), (2, 0, 16)])
@pytest.mark.parametrize("engine", ["scipy", "dense"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_no_sample_or_no_step_ends_in_nothing_or_is_refused(tmp_path, kind, engine, size):
    """ONNX Runtime's own kernels would end the process."""
    graph = capture(randomised(Recurrent(kind)), (torch.randn(2, 5, 16),), dynamic=FREE)
    path = export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE).path
    path.write_bytes(with_every_layer_on(engine, path.read_bytes()))
    bundle = load(path, threads=1)
    empty = {"x": np.zeros(size, np.float32)}
    if engine == "dense":
        with pytest.raises(InputError, match=r"the model cannot run on .* Nothing was "):
            bundle.run(empty)
    else:
        assert bundle.run(empty)["output_0"].shape == size
    assert bundle.run({"x": np.zeros((1, 1, 16), np.float32)})["output_0"].shape == (1, 1, 16)


@pytest.mark.parametrize("engine", [*(engine.name for engine in find()), "dense"])
def test_four_threads_run_one_bundle_at_once(tmp_path, engine):
    graph = capture(randomised(LastStates(nn.LSTM, bidirectional=True)), (torch.randn(2, 5, 16),), dynamic=FREE)
    exported = export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE)
    exported.path.write_bytes(with_every_layer_on(engine, exported.path.read_bytes()))
    bundle = load(exported.path, threads=2)
    assert bundle.engines()[1]["recurrent.l0"] == ("scipy" if engine == "torch" else engine)
    rng = np.random.default_rng(0)
    inputs = [
        {"x": rng.standard_normal((batch, length, 16)).astype(np.float32)} for batch, length in (*SIZES, (40, 20))
    ]
    outputs = [bundle.run(x)["output_0"] for x in inputs]
    kept = [output.copy() for output in outputs]

    def same(first: int) -> bool:
        order = [(first + turn) % len(inputs) for turn in range(50)]
        return all(np.array_equal(bundle.run(inputs[at])["output_0"], kept[at]) for at in order)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(same, range(8))) == [True] * 8
    assert all(np.array_equal(output, copied) for output, copied in zip(outputs, kept, strict=True))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_are_named_after_the_module_and_its_layer(tmp_path, kind):
    alone, inside = kind(48, 40, 2, bidirectional=True), nn.Sequential(OrderedDict(words=kind(48, 40), last=Last()))
    own = kind.__name__.lower()
    for model, names in ((alone, [f"{own}.l0", f"{own}.l1"]), (inside, ["words.l0"])):
        graph = capture(randomised(model), (torch.randn(5, 2, 48),))
        exported = export_bundle(graph, tmp_path / f"{names[0]}.l0c", settings=SPARSE)
        assert [layer.name for layer in exported.manifest.layers.values()] == names


class TestStrangers:
    """A recurrent layer reads memory by what the manifest says of it, so nothing of that is believed."""

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("recurrence",), None, "recurrence is None, expected an object for a recurrent layer"),
            (("recurrence",), [], "an object is expected"),
            (("kind",), "linear", "recurrence is .* expected an object for a recurrent layer, and null otherwise"),
            (("recurrence", "cell"), "peephole", "cell is 'peephole'"),
            (("recurrence", "cell"), "gru", "recurrence is .* expected 1 states that are inputs"),
            (("recurrence", "direction"), "both", "direction is 'both'"),
            (("recurrence", "direction"), "bidirectional", "which no such recurrent layer has"),
            (("recurrence", "weight"), "none", "reads a tensor 'none' that does not exist"),
            (("recurrence", "states"), [1, 3], "2 states that are inputs, and no other inputs"),
            (("recurrence", "states"), [1, 1], "2 states that are inputs, and no other inputs"),
            (("recurrence", "states"), [-1, 2], "integers from 0"),
            (("recurrence", "makes"), [3], "what each output is, from 0 to 2"),
            (("recurrence", "makes"), [0, 1], "what each output is, from 0 to 2"),
            (("recurrence", "makes"), [], "what each output is, from 0 to 2"),
            (("inputs",), ["x"], "2 states that are inputs, and no other inputs"),
            (("inputs",), [], "2 states that are inputs, and no other inputs"),
            (("outputs",), [], "what each output is, from 0 to 2"),
            (("transposed",), True, "transposed"),
            (("activation",), "relu", "an activation"),
            (("kernel",), [3], "a kernel"),
        ],
    )
    def test_a_layer_that_is_not_what_it_says(self, original, tmp_path, path, value, message):
        files = members(original)
        manifest = json.loads(files["manifest.json"])
        layer = [layer for layer in manifest["layers"].values() if layer["kind"] == "recurrent"][1]
        *way, last = path
        for key in way:
            layer = layer[key]
        layer[last] = value
        refused(rewritten(files, manifest), tmp_path, message)

    @pytest.mark.parametrize("shape", [[1, 95, 24], [1, 48, 48], [1, 100, 24], [2, 48, 24], [96, 24], [1, 96, 24, 1]])
    def test_weights_of_another_shape(self, original, tmp_path, shape):
        files = members(original)
        manifest = json.loads(files["manifest.json"])
        layer = [layer for layer in manifest["layers"].values() if layer["kind"] == "recurrent"][1]
        manifest["tensors"][layer["recurrence"]["weight"]]["shape"] = shape
        expected = "which no such recurrent layer has|must have [0-9]+ rows|beyond the"
        refused(rewritten(files, manifest), tmp_path, expected)

    def test_random_mutations(self, original, tmp_path):
        with np.errstate(all="ignore"):
            seen = fuzz(original, 100, 7, tmp_path / "hostile.l0c")
        assert seen["refused"] > 50


def refused(data: bytes, folder: Path, message: str) -> None:
    path = folder / "hostile.l0c"
    path.write_bytes(data)
    with pytest.raises(RunError, match=message):
        load(path)
