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
import onnx
import pytest
import torch
from bundles import NETWORKS, SPARSE, LastStates, Recurrent, randomised
from hostile import fuzz, members, rewritten
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim

from l0compress.errors import InputError, RunError
from l0compress.export.bundle import BundleSettings, export_bundle
from l0compress.export.bundle_session import TOLERANCES
from l0compress.export.onnx import export_onnx
from l0compress.export.partition.finding import find_candidates
from l0compress.export.partition.flow import flow_of
from l0compress.export.partition.initializers import fold_constants
from l0compress.export.partition.recurrent_nodes import without_zero_states
from l0compress.export.session import OnnxSession
from l0compress.graph import capture
from l0compress_runtime import load
from l0compress_runtime.engines import find
from l0compress_runtime.manifest import DENSE

pytestmark = pytest.mark.slow

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
        allowed = (TOLERANCES[storage] or 2e-6) * np.abs(expected).max()
        for bundle in bundles:
            np.testing.assert_allclose(bundle.run({"x": x.numpy()})["output_0"], expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("model", [lambda: LastStates(nn.LSTM, bidirectional=True), lambda: Recurrent(nn.GRU)])
def test_the_same_as_onnx_runtime(tmp_path, model):
    graph = capture(randomised(model()), (torch.randn(2, 5, 16),), dynamic=FREE)
    export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE)
    export_onnx(graph, tmp_path / "model.onnx")
    bundle, dense = load(tmp_path / "model.l0c"), OnnxSession(tmp_path / "model.onnx")
    for batch, length in SIZES:
        x = torch.randn(batch, length, 16)
        expected = dense(x)["output_0"].numpy()
        np.testing.assert_allclose(bundle.run({"x": x.numpy()})["output_0"], expected, atol=2e-6)


def test_zeros_to_begin_with_are_not_made(tmp_path):
    graph = capture(randomised(Recurrent(nn.LSTM, num_layers=2)), (torch.randn(2, 5, 16),), dynamic=FREE)
    export_onnx(graph, tmp_path / "model.onnx")
    model = without_zero_states(fold_constants(onnx.load(tmp_path / "model.onnx")))
    found = [
        (node.op_type, len(node.input)) for node in model.graph.node if node.op_type in ("LSTM", "ConstantOfShape")
    ]
    assert found == [("LSTM", 4), ("LSTM", 4)]
    onnx.checker.check_model(model, full_check=True)


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
@pytest.mark.parametrize("engine", ["scipy", DENSE])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_no_sample_or_no_step_ends_in_nothing_or_is_refused(tmp_path, kind, engine, size):
    """ONNX Runtime's own kernels would end the process."""
    graph = capture(randomised(Recurrent(kind)), (torch.randn(2, 5, 16),), dynamic=FREE)
    path = export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE).path
    path.write_bytes(with_every_layer_on(engine, path.read_bytes()))
    bundle = load(path, threads=1)
    empty = {"x": np.zeros(size, np.float32)}
    if engine == DENSE:
        with pytest.raises(InputError, match=r"the model cannot run on .* Nothing was "):
            bundle.run(empty)
    else:
        assert bundle.run(empty)["output_0"].shape == size
    assert bundle.run({"x": np.zeros((1, 1, 16), np.float32)})["output_0"].shape == (1, 1, 16)


@pytest.mark.parametrize("engine", [*(engine.name for engine in find()), DENSE])
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


def with_every_layer_on(engine: str, data: bytes) -> bytes:
    files = members(data)
    manifest = json.loads(files["manifest.json"])
    for step in manifest["plans"]["split"]:
        step["engine"] = step["engine"] and engine
    return rewritten(files, manifest)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_are_named_after_the_module_and_its_layer(tmp_path, kind):
    alone, inside = kind(48, 40, 2, bidirectional=True), nn.Sequential(OrderedDict(words=kind(48, 40), last=Last()))
    own = kind.__name__.lower()
    for model, names in ((alone, [f"{own}.l0", f"{own}.l1"]), (inside, ["words.l0"])):
        graph = capture(randomised(model), (torch.randn(5, 2, 48),))
        exported = export_bundle(graph, tmp_path / f"{names[0]}.l0c", settings=SPARSE)
        assert [layer.name for layer in exported.manifest.layers.values()] == names


def node_model(operator: str, *, zeros: tuple[float, float] = (0.9, 0.9), **options: Any) -> onnx.ModelProto:
    """One recurrent node; ``inputs`` are those after its biases: a shape each, an array of a constant, or None."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    extra: dict[str, Any] = options.pop("inputs", {})
    rng, sides = np.random.default_rng(0), 1 + (options.get("direction") == "bidirectional")
    shapes = {"w": (sides, gates * 24, 16), "r": (sides, gates * 24, 24), "b": (sides, 8 * 24 * gates // 4)}
    constants = {
        name: (rng.normal(size=shape) * (rng.random(shape) >= share)).astype(np.float32)
        for (name, shape), share in zip(shapes.items(), (*zeros, 0.0), strict=True)
    }
    constants |= {name: value for name, value in extra.items() if isinstance(value, np.ndarray)}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, 16])]
    for name, value in extra.items():
        if isinstance(value, tuple):
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value))
    names = ["x", "w", "r", "b", *("" if value is None else name for name, value in extra.items())]
    node = helper.make_node(operator, names, ["y"], hidden_size=24, **options)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "g", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


ZEROS, ONES = (np.full((1, 1, 24), value, np.float32) for value in (0, 1))
STATES = {
    "an input": ([], {}, False),
    "zeros of some shape": ([("ConstantOfShape", ["shape"], {})], {}, True),
    "ones of some shape": (
        [("ConstantOfShape", ["shape"], {"value": numpy_helper.from_array(np.ones(1, np.float32))})],
        {},
        False,
    ),
    "expanded zeros": ([("Expand", ["zeros", "shape"], {})], {"zeros": ZEROS}, True),
    "expanded ones": ([("Expand", ["ones", "shape"], {})], {"ones": ONES}, False),
    "rearranged zeros": (
        [("Expand", ["zeros", "shape"], {}), ("Transpose", ["0"], {"perm": [1, 0, 2]}), ("Identity", ["1"], {})],
        {"zeros": ZEROS},
        True,
    ),
    "what zeros become": ([("Expand", ["zeros", "shape"], {}), ("Exp", ["0"], {})], {"zeros": ZEROS}, False),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_counts_as_zeros_only_where_it_can_be_nothing_else(name):
    makers, constants, is_zero = STATES[name]
    model = node_model("GRU", inputs={"none": None, "h": ("one", "batch", 24)})
    graph = model.graph
    nodes = [
        helper.make_node(op, inputs, ["h" if at == len(makers) - 1 else str(at)], **options)
        for at, (op, inputs, options) in enumerate(makers)
    ]
    if nodes:
        del graph.input[1]
        graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [3]))
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in constants.items())
    for at, node in enumerate(nodes):
        graph.node.insert(at, node)
    before = model.SerializeToString()
    made = without_zero_states(model)
    assert model.SerializeToString() == before
    assert ("h" in made.graph.node[-1].input) != is_zero
    assert len(made.graph.node) == 1 + (0 if is_zero else len(nodes))
    (candidate,) = find_candidates(flow_of(made)).candidates
    assert candidate.inputs == (("x",) if is_zero else ("x", "h"))


LENGTHS = {"lengths": np.array([3], np.int32)}
STAYS_DENSE = {
    "lengths": ("LSTM", {"inputs": LENGTHS}, "is told the lengths of the sequences"),
    "peepholes": (
        "LSTM",
        {"inputs": {"a": None, "h": None, "c": None, "p": np.ones((1, 72), np.float32)}},
        "has peepholes",
    ),
    "clip": ("GRU", {"clip": 3.0}, "clips its sums, couples its gates or has the batch first"),
    "coupled gates": ("LSTM", {"input_forget": 1}, "clips its sums, couples its gates or has the batch first"),
    "batch first": ("RNN", {"layout": 1}, "clips its sums, couples its gates or has the batch first"),
    "activations": ("GRU", {"activations": ["Relu", "Tanh"]}, "has the activations relu, tanh"),
    "two activations": (
        "RNN",
        {"direction": "bidirectional", "activations": ["Relu", "Tanh"]},
        "has the activations relu, tanh",
    ),
    "parameters": (
        "RNN",
        {"activations": ["Relu"], "activation_alpha": [0.5]},
        "has the activations relu with parameters",
    ),
    "a constant state": (
        "GRU",
        {"inputs": {"a": None, "h": np.ones((1, 1, 24), np.float32)}},
        "reads a sequence or a state that is a constant, or one as the other",
    ),
    "one dense weight": ("LSTM", {"zeros": (0.9, 0.1)}, "has too few zeros in its two weights together"),
}


@pytest.mark.parametrize("name", STAYS_DENSE)
def test_what_stays_dense_says_why(name):
    operator, options, reason = STAYS_DENSE[name]
    found = find_candidates(flow_of(node_model(operator, **options)))
    assert not found.candidates
    assert set(found.reasons.values()) == {f"{operator} {reason}"}


@pytest.mark.parametrize(
    ("operator", "options", "cell"),
    [
        ("LSTM", {}, "lstm"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Tanh"]}, "lstm"),
        ("GRU", {"linear_before_reset": 0}, "gru"),
        ("GRU", {"linear_before_reset": 1}, "gru_reset_after"),
        ("RNN", {}, "rnn_tanh"),
        ("RNN", {"activations": ["Relu", "Relu"], "direction": "bidirectional"}, "rnn_relu"),
        ("RNN", {"direction": "reverse"}, "rnn_tanh"),
        ("LSTM", {"zeros": (0.99, 0.4)}, None),
        ("LSTM", {"zeros": (0.3, 0.99)}, "lstm"),
        ("LSTM", {"inputs": {"a": None, "h": ("one", "batch", 24)}}, "lstm"),
    ],
)
def test_what_becomes_a_layer(operator, options, cell):
    """Zeros count in both weights together: a step costs the nonzeros of both."""
    found = find_candidates(flow_of(node_model(operator, **options)))
    if cell is None:
        cell, share = "lstm", (0.99 * 16 + 0.4 * 24) / 40
        assert found.candidates[0].zeros == pytest.approx(share, abs=0.03)
    (candidate,) = found.candidates
    assert (candidate.kind, candidate.recurrence.cell) == ("recurrent", cell)
    assert candidate.recurrence.direction == options.get("direction", "forward")


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
            (("recurrence", "weight"), "none", "reads a tensor 'none' that there is not"),
            (("recurrence", "states"), [1, 3], "2 states that are inputs, and no other inputs"),
            (("recurrence", "states"), [1, 1], "2 states that are inputs, and no other inputs"),
            (("recurrence", "states"), [-1, 2], "whole numbers from 0"),
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
        expected = "which no such recurrent layer has|have to have [0-9]+ rows|beyond the"
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
