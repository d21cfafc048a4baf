"""What becomes a sparse layer of a bundle, what stays dense and why, and that the whole computes the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from bundles import NETWORKS, SPARSE, mlp_graph, randomised
from hostile import members
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import nn

from l0compress import BundleSettings, capture, export_bundle, export_onnx
from l0compress.errors import InputError, RunError, SurgeryError
from l0compress.export.bundle import ExportedBundle
from l0compress.verification import Call
from l0compress_runtime import load
from l0compress_runtime.engines import find

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bundle of a network, with every product sparse; made once."""
    folder, known = tmp_path_factory.mktemp("bundles"), {}

    def make(name: str) -> tuple[nn.Module, Call, ExportedBundle]:
        if name not in known:
            torch.manual_seed(0)
            model, call = NETWORKS[name]()
            exported = export_bundle(capture(model, call.args), folder / f"{len(known)}.l0c", settings=SPARSE)
            known[name] = model, call, exported
        return known[name]

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_every_product_sparse_equals_the_model_in_float64(made, name):
    model, call, exported = made(name)
    assert any(step.engine is not None for step in exported.manifest.plans["split"]), "nothing ran sparse"
    bundle, double = load(exported.path), copy.deepcopy(model).double()
    for batch_size in (1, 4):
        args = [draw(arg, batch_size) for arg in call.args]
        feeds = {port.name: arg.numpy() for port, arg in zip(bundle.inputs, args, strict=True)}
        got = bundle.run(feeds)
        with torch.no_grad():
            expected = double(*[arg.double() if arg.is_floating_point() else arg for arg in args])
        expected = expected if isinstance(expected, dict) else {"output_0": expected}
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(got[key], value.numpy(), atol=2e-6 * float(value.abs().max()))


def draw(arg: torch.Tensor, batch_size: int) -> torch.Tensor:
    shape = (batch_size, *arg.shape[1:])
    return torch.randn(shape) if arg.is_floating_point() else torch.randint(0, 50, shape)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("linear", {"linear": 3}),
        ("convolutions", {"conv": 4}),
        ("one dimension", {"conv": 2}),
        ("attention", {"embedding": 1, "linear": 7}),
        ("LSTM", {"recurrent": 1, "linear": 1}),
        ("GRU", {"recurrent": 1, "linear": 1}),
        ("RNN", {"recurrent": 1, "linear": 1}),
        ("LSTM both ways", {"recurrent": 2, "linear": 1}),
        ("projections", {"recurrent": 1, "linear": 1}),
        ("LSTM decoder", {"recurrent": 2, "linear": 1}),
        ("columns", {"linear": 2}),
        ("positions", {"linear": 1}),
        ("two outputs", {"linear": 2}),
        ("unrolled cell", {"linear": 7}),
    ],
)
def test_what_becomes_a_layer(made, name, kinds):
    found = [layer.kind for layer in made(name)[2].manifest.layers.values()]
    assert {kind: found.count(kind) for kind in found} == kinds


def test_a_weight_that_is_read_several_times_is_stored_once(made):
    weights = [layer.weight for layer in made("unrolled cell")[2].manifest.layers.values()]
    assert (len(weights), len(set(weights))) == (7, 3)


def test_relu_becomes_part_of_the_layer_and_gelu_does_not(made):
    assert [layer.activation for layer in made("linear")[2].manifest.layers.values()] == ["relu", None, None]


def test_layers_bear_the_users_names_where_the_graph_still_does(made):
    names = {layer.name for layer in made("attention")[2].manifest.layers.values()}
    assert names >= {"embedding", "q", "v", "o", "up", "down"}


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_recurrent_weights_are_stored_without_zeros(made, operator):
    manifest = made(operator)[2].manifest
    stored = [spec for spec in manifest.tensors.values() if len(spec.shape) == 3 and spec.shape[-1] in (16, 24)]
    assert stored and all(spec.nonzeros is not None and spec.nonzeros < spec.size / 4 for spec in stored)


def test_a_dense_model_is_one_graph_with_the_nodes_of_the_onnx_file(tmp_path):
    graph = mlp_graph(zeros=0.0)
    manifest = export_bundle(graph, tmp_path / "model.l0c").manifest
    export_onnx(graph, tmp_path / "model.onnx")
    (step,) = manifest.plans["whole"]
    segment = manifest.segments[step.part]
    model = onnx.load_from_string(members((tmp_path / "model.l0c").read_bytes())[segment.member])
    expected = onnx.load(tmp_path / "model.onnx")
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in expected.graph.node]
    assert set(manifest.plans) == {"whole"} and not manifest.layers


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings_which_collect_a_list(tmp_path, mode):
    model = randomised(nn.Sequential(nn.EmbeddingBag(50, 32, mode=mode), nn.Linear(32, 40)))
    bags = torch.randint(0, 50, (3, 5))
    export_bundle(capture(model, (bags,)), tmp_path / "model.l0c", settings=SPARSE)
    (name,) = (port.name for port in load(tmp_path / "model.l0c").inputs)
    got, expected = load(tmp_path / "model.l0c").run({name: bags.numpy()})["output_0"], model(bags).detach().numpy()
    np.testing.assert_allclose(got, expected, atol=2e-6 * np.abs(expected).max())


class Shifted(nn.Module):
    """A product to which a constant with leading ones is added."""

    def __init__(self, ones: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(32, 40)), nn.Parameter(torch.empty(*[1] * ones, 40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


@pytest.mark.parametrize("shape", [(3, 32), (3, 5, 32), (3, 2, 5, 32)], ids=len)
@pytest.mark.parametrize("ones", range(4))
def test_a_bias_with_leading_ones_is_part_of_a_product_that_has_as_many_dimensions(tmp_path, shape, ones):
    model, x = randomised(Shifted(ones)), torch.randn(*shape)
    exported = export_bundle(capture(model, (x,)), tmp_path / "model.l0c", settings=SPARSE)
    (layer,) = exported.manifest.layers.values()
    assert (layer.bias is not None) == (ones < len(shape))
    got, expected = load(tmp_path / "model.l0c").run({"x": x.numpy()})["output_0"], model(x).detach().numpy()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-6 * np.abs(expected).max())


class Reshaped(nn.Module):
    """A product with what a function makes of the input."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(width, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(self.function(x)))


@pytest.mark.parametrize(
    ("function", "width", "flat_from"),
    [
        (lambda x: x.flatten(1), 60, 1),
        (lambda x: x.flatten(2), 20, 2),
        (lambda x: x.reshape(x.shape[0], -1), 60, 1),
        (lambda x: x.view(-1, 3, 20), 20, 2),
        (lambda x: x.reshape(-1, 20), 20, None),
        (lambda x: x.reshape(-1, 5, 12), 12, None),
        (lambda x: x.flatten(1, 2), 5, None),
        (lambda x: x.transpose(1, 3).flatten(1), 60, 1),
        (lambda x: x.unflatten(1, (1, 3)).flatten(2), 60, None),
    ],
)
def test_a_layer_flattens_its_input_itself_and_takes_no_other_view(tmp_path, function, width, flat_from):
    model = randomised(Reshaped(function, width))
    exported = export_bundle(capture(model, (torch.randn(2, 3, 4, 5),)), tmp_path / "model.l0c", settings=SPARSE)
    (layer,) = exported.manifest.layers.values()
    assert (layer.flat_from, layer.activation) == (flat_from, "relu")
    bundle = load(tmp_path / "model.l0c")
    for batch_size in (1, 3):
        x = torch.randn(batch_size, 3, 4, 5)
        expected = model(x).detach().numpy()
        got = bundle.run({"x": x.numpy()})["output_0"]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=2e-6 * np.abs(expected).max())


def test_a_flattening_layer_takes_no_sample(tmp_path):
    graph = capture(randomised(Reshaped(nn.Flatten(), 60)), (torch.randn(2, 3, 4, 5),))
    export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE)
    got = load(tmp_path / "model.l0c").run({"x": np.zeros((0, 3, 4, 5), np.float32)})["output_0"]
    assert got.shape == (0, 64)


def test_no_sample_after_a_mean_which_onnx_runtime_gives_the_sizes_of_its_input(tmp_path):
    layers = (nn.Conv2d(3, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 40))
    graph = capture(randomised(nn.Sequential(*layers)), (torch.randn(2, 3, 9, 9),))
    exported = export_bundle(graph, tmp_path / "model.l0c", settings=SPARSE)
    assert [layer.flat_from for layer in exported.manifest.layers.values()] == [None, 1]
    got = load(tmp_path / "model.l0c").run({"input": np.zeros((0, 3, 9, 9), np.float32)})["output_0"]
    assert got.shape == (0, 40)


def test_a_flattening_that_something_else_reads_is_left(tmp_path):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(60, 60)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(1)
            return self.linear(flat) + flat

    exported = export_bundle(
        capture(randomised(Both()), (torch.randn(2, 3, 4, 5),)), tmp_path / "model.l0c", settings=SPARSE
    )
    assert [layer.flat_from for layer in exported.manifest.layers.values()] == [None]


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("parameter", ["weight", "bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_stays_dense_and_is_named(tmp_path, storage, parameter, value):
    model, x = randomised(nn.Sequential(nn.Linear(48, 40), nn.Linear(40, 1000))), torch.rand(3, 48)
    with torch.no_grad():
        getattr(model[1], parameter)[7, ...].fill_(value)
    settings = BundleSettings(measure=False, threads=1, storage=storage)
    exported = export_bundle(capture(model, (x,)), tmp_path / "model.l0c", settings=settings)
    assert [layer.name for layer in exported.manifest.layers.values()] == ["0"]
    assert re.search("not finite|other than one finite", exported.manifest.whys["1.weight"])
    (name,) = (port.name for port in load(tmp_path / "model.l0c").inputs)
    got = load(tmp_path / "model.l0c").run({name: x.numpy()})["output_0"]
    np.testing.assert_array_equal(np.isnan(got), model(x).isnan().numpy())
    assert not np.isfinite(got[:, 7]).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weights_of_another_precision_stay_dense_and_say_so(tmp_path, dtype):
    x = torch.randn(2, 48, dtype=dtype)
    model = randomised(nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 36))).to(dtype)
    exported = export_bundle(capture(model, (x,)), tmp_path / "model.l0c", settings=SPARSE)
    reason = f"dense: Gemm reads {str(dtype).removeprefix('torch.')}, but the engines take float32"
    assert exported.manifest.whys == {f"{layer}.weight": reason for layer in (0, 2)}
    assert f"0.weight: {reason}" in exported.lines()
    load(tmp_path / "model.l0c").run({"input": x.numpy()})


def test_a_graph_with_lists_stays_dense_and_says_so(tmp_path, monkeypatch):
    """Nothing that is exported here keeps a list, so it is only said that there is one."""
    monkeypatch.setattr("l0compress.export.bundle._all_tensors", lambda *_: False)
    exported = export_bundle(mlp_graph(), tmp_path / "model.l0c", settings=SPARSE)
    reason = "dense: the graph has values that are not tensors, such as lists, and is not cut"
    assert exported.manifest.whys == dict.fromkeys(("0", "2", "4"), reason)
    assert not exported.manifest.layers


def test_a_bundle_that_cannot_be_read_again_is_named_as_what_it_was_to_be(tmp_path, monkeypatch):
    def damaged(*_, **__):
        raise RunError("Cannot read it.") from ValueError("holds a value that is not finite")

    monkeypatch.setattr("l0compress.export.bundle.BundleSession", damaged)
    reason = "cannot be read back: holds a value that is not finite. Nothing was written."
    with pytest.raises(SurgeryError, match="^" + re.escape(f"the bundle for {tmp_path / 'model.l0c'} {reason}")):
        export_bundle(mlp_graph(), tmp_path / "model.l0c", settings=SPARSE)


class TestArguments:
    @pytest.mark.parametrize("sizes", [["1"], "18", [1.5], [0], [True], [], None, 0, [10**12]], ids=repr)
    def test_batch_sizes_that_are_none(self, tmp_path, sizes):
        with pytest.raises(InputError, match=re.escape(f"batch sizes {sizes!r}: expected integers from 1 to")):
            export_bundle(mlp_graph(), tmp_path / "model.l0c", batch_sizes=sizes, settings=SPARSE)

    @pytest.mark.parametrize("sizes", [8, [8], (8,), np.array([8])], ids=repr)
    def test_one_batch_size_may_be_given_by_itself(self, tmp_path, sizes):
        exported = export_bundle(mlp_graph(), tmp_path / "model.l0c", batch_sizes=sizes, settings=SPARSE)
        assert exported.equality.batch_sizes[-1] == 8

    @pytest.mark.parametrize("threads", [None, 0, 1.5, "2", True])
    def test_threads_that_are_no_number(self, threads):
        with pytest.raises(InputError, match=re.escape(f"threads={threads!r}: expected an integer from 1 to 1,024.")):
            BundleSettings(threads=threads)

    @pytest.mark.parametrize("engines", [(), [], (1,), 3])
    def test_engines_that_are_no_names(self, engines):
        with pytest.raises(InputError, match=re.escape(f"engines={engines!r} names no engines. Nothing was written.")):
            BundleSettings(engines=engines)

    def test_an_engine_may_be_given_by_itself(self):
        assert BundleSettings(engines="scipy") == BundleSettings(engines=("scipy",))
        assert find("scipy") == find(["scipy"])


def test_what_onnx_runtime_refuses_of_a_graph_that_was_taken_apart(tmp_path, monkeypatch):
    def refusing(*_, **__):
        raise Fail("[ONNXRuntimeError] : 1 : FAIL : no such thing.")

    monkeypatch.setattr("l0compress.export.bundle.open_session", refusing)
    message = (
        "ONNX Runtime cannot run the graph value by value, as a bundle needs it: no such thing. Nothing was written."
    )
    with pytest.raises(SurgeryError, match="^" + re.escape(message)):
        export_bundle(mlp_graph(), tmp_path / "model.l0c", settings=SPARSE)
    assert list(tmp_path.iterdir()) == []


def test_a_free_length_stays_free(tmp_path):
    model, call = NETWORKS["attention"]()
    graph = capture(model, call.args, dynamic="batch+sequence")
    export_bundle(graph, Path(tmp_path, "model.l0c"), settings=SPARSE)
    bundle = load(tmp_path / "model.l0c")
    assert bundle.inputs[0].shape == ("batch", "length")
    tokens = torch.randint(0, 50, (3, 11))
    got, expected = bundle.run({"tokens": tokens.numpy()})["output_0"], model(tokens).detach()
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-6 * float(expected.abs().max()))
