"""Whole ONNX files: written by hand, by PyTorch and by us, as modules that are captured, trained and cut."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from torch import Tensor, nn
from torch.export import Dim

import l0compress as l0
from l0compress.errors import ModelError
from l0compress.loading import load_model
from l0compress.loading.references import without_broken

BOTH_FREE = {0: Dim.AUTO, 1: Dim.AUTO}


def written(folder: Path, body: str, *, opset: int = 17, **weights: np.ndarray) -> Path:
    """A file from ONNX's own text form, with more weights put in."""
    domains = f'"" : {opset}, "com.microsoft" : 1, "own" : 1'
    model = parser.parse_model(f"<ir_version: 9, opset_import: [{domains}]> {body}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def by_onnx_runtime(path: Path, *inputs: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]


def assert_same(module: nn.Module, path: Path, *inputs: Tensor) -> None:
    """The module computes what ONNX Runtime computes of the file."""
    found = module(*inputs)
    assert isinstance(found, Tensor)
    np.testing.assert_allclose(found.detach().numpy(), by_onnx_runtime(path, *inputs), rtol=1e-4, atol=1e-5)


def randomised(model: nn.Module) -> nn.Module:
    """No two weights of a model alike, and statistics as after training."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 2.0) if "var" in name else nn.init.normal_(buffer)
    return model.eval()


def exported(model: nn.Module, args: tuple[Tensor, ...], path: Path, **how) -> None:
    """By PyTorch's older exporter, which writes the forms of older files."""
    free = {f"x{i}": {0: "n", 1: "s"} if not x.is_floating_point() else {0: "n"} for i, x in enumerate(args)}
    torch.onnx.export(model, args, path, dynamo=False, input_names=list(free), dynamic_axes=free, **how)


class TestFiles:
    def test_sizes_stay_free_through_arithmetic_of_shapes(self, tmp_path):
        """Shape, Gather, Concat and Reshape, as every exporter writes heads of attention, and positions by Range."""
        body = """g (float[n,s,8] x) => (float[n,s,8] y) <
            int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] two = {2}, int64[1] four = {4},
            int64[1] minus = {-1}> {
          sizes = Shape(x)
          n = Gather<axis=0>(sizes, zero)
          s = Gather<axis=0>(sizes, one)
          nn = Unsqueeze(n, first)
          ss = Unsqueeze(s, first)
          heads = Concat<axis=0>(nn, ss, two, four)
          split = Reshape(x, heads)
          swapped = Transpose<perm=[0, 2, 1, 3]>(split)
          back = Transpose<perm=[0, 2, 1, 3]>(swapped)
          flat = Concat<axis=0>(nn, ss, minus)
          joined = Reshape(back, flat)
          places = Range(zero, s, one)
          embedded = Gather<axis=0>(table, places)
          added = Add(joined, embedded)
          y = MatMul(added, w)
        }"""
        rng = np.random.default_rng(0)
        table, w = (rng.normal(size=shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
        path = written(tmp_path, body, table=table, w=w)
        module = load_model(path)
        graph = l0.capture(module, (torch.randn(2, 5, 8),), dynamic={"x": BOTH_FREE})
        for shape in ((2, 5, 8), (7, 3, 8), (1, 11, 8)):
            x = torch.randn(shape)
            assert_same(module, path, x)
            assert_same(graph.module(), path, x)
        assert {name for name, _ in graph.module().named_parameters()} == {"table", "w"}
        names = {node.target for node in graph.nodes() if node.op == "call_function"}
        assert torch.ops.aten.reshape.default in names and not any("tensor" in str(name) for name in names)

    def test_a_table_is_cut_to_a_free_length(self, tmp_path):
        """Positions, as BERT has them: a constant list of integers, sliced by the length."""
        body = """g (int64[n,s] ids) => (float[n,s,4] y) <
            int64[1] zero = {0}, int64[1] one = {1}, int64[1,6] all = {0, 1, 2, 3, 4, 5}> {
          s = Shape<start=1>(ids)
          places = Slice(all, zero, s, one)
          a = Gather(words, ids)
          b = Gather(positions, places)
          y = Add(a, b)
        }"""
        rng = np.random.default_rng(0)
        tables = {name: rng.normal(size=(6, 4)).astype(np.float32) for name in ("words", "positions")}
        path = written(tmp_path, body, **tables)
        graph = l0.capture(load_model(path), (torch.arange(6).view(2, 3),), dynamic="batch+sequence")
        assert [name for name, _ in graph.module().named_buffers()] == ["all"]
        for ids in (torch.arange(6).view(2, 3), torch.arange(5).view(1, 5)):
            assert_same(graph.module(), path, ids)

    def test_weights_keep_their_names_and_are_trained(self, tmp_path):
        x = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["n", 4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
        weights = {"layer.0.weight": (3, 4), "layer.0.bias": (3,), "onnx::Gemm_7": (1, 3), "class": (1,)}
        tensors = [numpy_helper.from_array(np.ones(s, np.float32), name) for name, s in weights.items()]
        names = list(weights)
        nodes = [
            helper.make_node("Gemm", ["input.1", *names[:2]], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", *names[2:]], ["y"], transB=1),
        ]
        graph = helper.make_graph(nodes, "g", [x], [y], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        module = load_model(tmp_path / "m.onnx")
        found = {name for name, _ in module.named_parameters()}
        assert found == {"layer.0.weight", "layer.0.bias", "onnx__Gemm_7", "class_"}
        module(input_1=torch.ones(2, 4)).sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(torch.ones(2, 4)), module(torch.ones(2, 4)))

    def test_what_is_not_finite_is_not_trained(self, tmp_path):
        path = written(
            tmp_path,
            "g (float[n,3] x) => (float[n,3] y) { y = Add(x, mask) }",
            mask=np.array([0, -np.inf, 0], np.float32),
        )
        module = load_model(path)
        assert [name for name, _ in module.named_buffers()] == ["mask"] and not list(module.parameters())
        assert_same(module, path, torch.randn(2, 3))

    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_other_precisions(self, tmp_path, dtype):
        kind = "float16" if dtype is np.float16 else "double"
        body = f"g ({kind}[n,4] x) => ({kind}[n,3] y) {{ h = MatMul(x, w) y = Sigmoid(h) }}"
        path = written(tmp_path, body, w=np.random.default_rng(0).normal(size=(4, 3)).astype(dtype))
        module = load_model(path)
        x = torch.randn(5, 4).double() if dtype is np.float64 else torch.randn(5, 4).half().float()
        wanted = by_onnx_runtime(path, x.half() if dtype is np.float16 else x)
        assert module(x).dtype == (torch.float32 if dtype is np.float16 else torch.float64)
        tolerance = 2e-3 if dtype is np.float16 else 1e-12
        np.testing.assert_allclose(module(x).detach().numpy(), wanted, atol=tolerance)

    def test_arithmetic_of_constants_keeps_its_precision(self, tmp_path):
        body = """g (double[n,3] x) => (double[n,3] y) <double size = {48.0}> { s = Sqrt(size) y = Div(x, s) }"""
        path, x = written(tmp_path, body), torch.randn(2, 3, dtype=torch.float64)
        np.testing.assert_allclose(load_model(path)(x).numpy(), by_onnx_runtime(path, x), rtol=1e-14)

    def test_functions_of_the_file_itself(self, tmp_path):
        body = """g (float[n,3] x) => (float[n,3] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }"""
        path = written(tmp_path, body)
        assert_same(load_model(path), path, torch.randn(2, 3))

    @pytest.mark.parametrize("chosen", [True, False])
    def test_a_branch_by_a_constant_is_taken(self, tmp_path, chosen):
        body = """g (float[n,3] x) => (float[n,3] y) <int64 a = {1}, int64 b = {2}> {
          c = Less(OPERANDS)
          y = If (c) <then_branch = t () => (float[n,3] p) { p = Relu(x) },
                      else_branch = e () => (float[n,3] q) { q = Neg(x) }>
        }"""
        path = written(tmp_path, body.replace("OPERANDS", "a, b" if chosen else "b, a"))
        assert_same(load_model(path), path, torch.randn(2, 3))

    def test_half_the_outputs_are_labels(self, tmp_path):
        body = """g (float[n,3] x) => (int64[n] label, float[n,3] p, float[n,3] q) {
          p = Softmax(x) label = ArgMax<axis=1, keepdims=0>(p) q = Relu(x)
        }"""
        found = load_model(written(tmp_path, body))(torch.tensor([[1.0, -2.0, 0.5]]))
        assert [tuple(part.shape) for part in found] == [(1, 3), (1, 3)]


class TestRefusals:
    """What is not read is refused in one sentence, with the node and the true reason."""

    def refused(self, folder: Path, body: str, reason: str, **weights: np.ndarray) -> None:
        path = written(folder, body, **weights)
        with pytest.raises(ModelError, match=re.escape(reason)):
            load_model(path)

    def test_branches_by_data(self, tmp_path):
        body = """g (float[n,3] x) => (float[n,3] y) <float zero = {0.0}> {
          m = ReduceMax<keepdims=0>(x)
          c = Less(m, zero)
          y = If (c) <then_branch = t () => (float[n,3] p) { p = Relu(x) },
                      else_branch = e () => (float[n,3] q) { q = Neg(x) }>
        }"""
        reason = "node '#2' (If): its branch depends on a value known only at run time; export"
        self.refused(tmp_path, body, reason)

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (
                "(float[n,3] x) => (float[n,3] y) <float s={0.1}, uint8 z={3}> { q = QuantizeLinear(x, s, z) "
                "y = DequantizeLinear(q, s, z) }",
                "node '#0' (QuantizeLinear): the file is quantized to integers; give the float file that it was made",
            ),
            (
                "(float[n,3] x) => (float[k,2] y) { z = NonZero(x) y = Cast<to=1>(z) }",
                "node '#0' (NonZero): the size of its result depends on the data",
            ),
            (
                "(float[n,3] x) => (float[n,3] y) { r = RandomNormalLike(x) y = Add(x, r) }",
                "node '#0' (RandomNormalLike): its result is random, so two runs of the model differ",
            ),
            (
                "(float[n,3] x) => (float[n,3] y) { y = own.Thing(x) }",
                "node '#0' (own::Thing): this operator is not supported. Nothing was changed.",
            ),
            (
                "(float[n,3] x) => (float[n,3] y) { y = com.microsoft.QuickGelu<beta=1.0>(x) }",
                "node '#0' (com.microsoft::QuickGelu): its attribute 'beta' is not supported",
            ),
        ],
    )
    def test_operators(self, tmp_path, body, reason):
        self.refused(tmp_path, f"g {body}", f"cannot be converted: {reason}")

    def test_loops(self, tmp_path):
        body = """g (float[n,3] x) => (float[n,3] y) <int64 times = {3}, bool go = {1}> {
          y = Loop (times, go, x) <body = b (int64 i, bool c, float[n,3] a) => (bool c, float[n,3] d) { d = Relu(a) }>
        }"""
        self.refused(tmp_path, body, "node '#0' (Loop): its number of iterations depends on the data")

    def test_complex_numbers_and_texts(self, tmp_path):
        body = "g (complex64[n] x) => (float[n] y) { y = Cast<to=1>(x) }"
        self.refused(tmp_path, body, "its input 'x' is not a tensor of real numbers")
        body = "g (string[n] x) => (float[n] y) { y = Cast<to=1>(x) }"
        self.refused(tmp_path, body, "its input 'x' is not a tensor of real numbers")

    def test_a_size_computed_from_data(self, tmp_path):
        body = "g (float[n,3] x, int64[2] sizes) => (float[a,b] y) { y = Reshape(x, sizes) }"
        module = load_model(written(tmp_path, body))
        reason = (
            "(Reshape): its sizes or axes are computed from the values of the model's inputs, not from their shapes"
        )
        with pytest.raises(ModelError, match=re.escape(reason)):
            module(torch.randn(2, 3), torch.tensor([3, 2]))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (
                {},
                "(GRU): it has a reset before the product (linear_before_reset=0), which PyTorch's layer does not have",
            ),
            (
                {"linear_before_reset": 1, "lengths": True},
                "(GRU): it has a length per sequence, which PyTorch's layer does not have",
            ),
        ],
    )
    def test_recurrent_layers_that_pytorch_lacks(self, tmp_path, change, reason):
        lengths = "l" if change.pop("lengths", False) else ""
        attributes = ", ".join(["hidden_size=2", *(f"{name}={value}" for name, value in change.items())])
        weights = {"w": np.ones((1, 6, 3), np.float32), "r": np.ones((1, 6, 2), np.float32)}
        taken = ", ".join(["x", "w", "r", *(["", lengths] if lengths else [])])
        body = f"g (float[t,n,3] x, int32[n] l) => (float[t,1,n,2] y) {{ y = GRU<{attributes}>({taken}) }}"
        module = load_model(written(tmp_path, body, **weights))
        with pytest.raises(ModelError, match=re.escape(reason)):
            module(torch.randn(4, 2, 3), torch.tensor([4, 4]))

    def test_versions_that_are_too_old(self, tmp_path):
        path = written(tmp_path, "g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }", opset=6)
        with pytest.raises(ModelError, match="uses version 6 of the ONNX operators, but 7 or later is needed"):
            load_model(path)


def test_layers_that_start_from_shared_zeros_are_not_tied(tmp_path):
    """One tensor of zeros, expanded to the batch, is the start of both layers, as PyTorch's exporter writes it."""
    body = """g (float[t,n,3] x) => (float[t,1,n,2] y) <
        int64[1] one = {1}, int64[1] two = {2}, int64[1] first = {0}, float[1,1,1] zero = {0.0}> {
      n = Shape<start=1, end=2>(x)
      sizes = Concat<axis=0>(one, n, two)
      h = Expand(zero, sizes)
      a = RNN<hidden_size=2>(x, w0, r0, , , h)
      b = Squeeze(a, one)
      y = RNN<hidden_size=2>(b, w1, r1, , , h)
    }"""
    rng = np.random.default_rng(0)
    shapes = {"w0": (1, 2, 3), "r0": (1, 2, 2), "w1": (1, 2, 2), "r1": (1, 2, 2)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    path, x = written(tmp_path, body, **weights), torch.randn(4, 2, 3)
    graph = l0.capture(load_model(path), (x,), dynamic={"x": BOTH_FREE})
    assert_same(graph.module(), path, torch.randn(6, 5, 3))
    # The second layer is the output; the first one's units can go.
    assert l0.find_groups(graph).num_moves == 2


class TestNetworks:
    def same_as_the_original(
        self, model: nn.Module, path: Path, x: Tensor, dims: dict[int, object]
    ) -> l0.CapturedGraph:
        """The file is read as the model that it was made of, whatever sizes are free, and is cut as far."""
        loaded = load_model(path)
        (name,) = [node.name for node in loaded.graph.nodes if node.op == "placeholder"]
        graph = l0.capture(loaded, (x,), dynamic={name: dims})
        larger = torch.cat([x, x, x])
        larger = torch.cat([larger, larger], 1) if 1 in dims else larger
        for batch in (x, larger):
            torch.testing.assert_close(loaded(batch), model(batch), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(graph.module()(batch), model(batch), rtol=1e-4, atol=1e-5)
        return graph

    @pytest.mark.filterwarnings("ignore")
    def test_a_convolutional_network_in_training_form(self, tmp_path):
        """Batch norm as a node of its own, which trains as PyTorch's."""
        layers = (nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten())
        model = randomised(nn.Sequential(*layers, nn.Linear(96, 10)))
        x, path = torch.randn(4, 1, 12, 12), tmp_path / "lenet.onnx"
        exported(
            model, (x,), path, opset_version=13, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False
        )
        graph = self.same_as_the_original(model, path, x, {0: Dim.AUTO})
        assert [name for name, _ in graph.module().named_parameters()] == [name for name, _ in model.named_parameters()]
        assert l0.find_groups(graph).num_moves == l0.find_groups(l0.capture(model, (x,))).num_moves == 6
        network = graph.module().train()
        assert not torch.equal(network(x), network(x))  # dropout is on
        network = graph.module().train()
        network(x)
        model.train()(x)
        torch.testing.assert_close(network.get_buffer("1.running_var"), model[1].running_var)

    def test_recurrent_layers_in_a_file_of_ours(self, tmp_path):
        class Tagger(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.cells = nn.Embedding(9, 4), nn.LSTM(4, 5, 1, batch_first=True, bidirectional=True)
                self.head = nn.Linear(10, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.cells(self.table(x))[0])

        model, x = randomised(Tagger()), torch.randint(0, 9, (2, 6))
        dense = l0.capture(model, (x,), dynamic={"x": BOTH_FREE})
        l0.export_onnx(dense, tmp_path / "tagger.onnx")
        graph = self.same_as_the_original(model, tmp_path / "tagger.onnx", x, BOTH_FREE)
        assert sum(node.target is torch.ops.aten.lstm.input for node in graph.nodes()) == 1
        assert l0.find_groups(graph).num_moves == l0.find_groups(dense).num_moves

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    def test_a_bert_with_free_batch_and_length(self, tmp_path):
        with without_broken("torchvision"):
            transformers = pytest.importorskip("transformers")
            sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16}
            config = transformers.BertConfig(vocab_size=12, num_hidden_layers=1, num_labels=2, **sizes)
            bert = transformers.BertForSequenceClassification(config)

        class Logits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bert = bert

            def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
                return self.bert(input_ids=input_ids, attention_mask=attention_mask).logits

        model, path = randomised(Logits()), tmp_path / "bert.onnx"
        tokens = {"input_ids": torch.arange(10).view(2, 5), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}
        free = {name: {0: "n", 1: "s"} for name in tokens}
        torch.onnx.export(
            model,
            tuple(tokens.values()),
            path,
            dynamo=False,
            input_names=list(free),
            dynamic_axes=free,
            opset_version=17,
        )
        loaded = load_model(path)
        graph = l0.capture(loaded, (), tokens, dynamic="batch+sequence")
        longer = {name: torch.cat([value, value[:1]]).repeat(1, 2) for name, value in tokens.items()}
        for given_tokens in (tokens, longer):
            assert_same(loaded, path, *given_tokens.values())
            torch.testing.assert_close(graph.module()(**given_tokens), loaded(**given_tokens))
        assert {group.kind for group in l0.find_groups(graph).groups} == {"blocks", "width", "channels"}


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def moved(draw) -> tuple[tuple[int, ...], str, list[np.ndarray], dict[str, str]]:
    """A shape, and an operator of movement that fits it."""
    shape = tuple(draw(SIZES))
    kind = draw(st.sampled_from(["Slice", "Pad", "Expand", "Reshape"]))
    rank = len(shape)
    ints = st.integers(-6, 6)
    if kind == "Slice":
        axes = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True))
        steps = [draw(st.sampled_from([-2, -1, 1, 2])) for _ in axes]
        starts, ends = ([draw(ints) for _ in axes] for _ in range(2))
        return shape, kind, [np.array(part, np.int64) for part in (starts, ends, axes, steps)], {}
    if kind == "Pad":
        amounts = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
        return shape, kind, [np.array(amounts, np.int64)], {}
    if kind == "Expand":
        front = draw(st.lists(st.integers(1, 3), max_size=2))
        back = [size if size != 1 or draw(st.booleans()) else 3 for size in shape]
        back = [1 if draw(st.booleans()) else size for size in back]
        return shape, kind, [np.array([*front, *back], np.int64)], {}
    kept = draw(st.integers(0, rank))
    return shape, kind, [np.array([*([0] * kept), *([-1] if kept < rank else [])], np.int64)], {}


@settings(max_examples=60, deadline=None)
@given(moved())
def test_movement_of_any_shape(tmp_path_factory, case):
    shape, kind, constants, attributes = case
    names = ["x", *(f"c{i}" for i in range(len(constants)))]
    node = helper.make_node(kind, names, ["y"], **attributes)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * len(shape))]
    weights = [numpy_helper.from_array(c, name) for c, name in zip(constants, names[1:], strict=True)]
    rank = len(constants[0]) if kind in ("Expand", "Reshape") else len(shape)
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * max(rank, len(shape) if kind == "Expand" else 0))
    ]
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("moved") / "m.onnx"
    path.write_bytes(model.SerializeToString())
    expected = by_onnx_runtime(path, torch.from_numpy(x))
    found = load_model(path)(torch.from_numpy(x)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
