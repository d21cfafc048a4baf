"""An ONNX graph on its way into a bundle: what is folded, which nodes have a sparse form, where the graph is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import NETWORKS, Recurrent, randomised
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim

from l0compress import capture, export_onnx
from l0compress.export.partition.cut import DenseSegment, Types, cut
from l0compress.export.partition.finding import find_candidates
from l0compress.export.partition.flow import Flow, flow_of
from l0compress.export.partition.initializers import fold_constants
from l0compress.export.partition.recurrent_nodes import without_zero_states
from l0compress.export.partition.views import flattened_from

FREE = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Flow:
    torch.manual_seed(0)
    model, call = NETWORKS["attention"]()
    path = tmp_path_factory.mktemp("flow") / "model.onnx"
    export_onnx(capture(model, call.args), path)
    return flow_of(fold_constants(onnx.load(path)))


@pytest.fixture(scope="module")
def types(flow) -> Types:
    return Types({name: onnx.ValueInfoProto(name=name) for name in (*flow.makers, *inputs_of(flow))})


class TestCut:
    """Any choice of candidates gives an order in which each value is there when it is read, with few graphs."""

    @pytest.mark.parametrize("seed", range(20))
    def test_a_random_choice(self, flow, types, seed):
        generator = np.random.default_rng(seed)
        candidates = find_candidates(flow).candidates
        chosen = [candidate for candidate in candidates if generator.random() < 0.5]
        made, nodes = set(inputs_of(flow)), 0
        for part in cut(flow, types, chosen):
            assert made.issuperset(part.inputs) and made.isdisjoint(part.outputs)
            made.update(part.outputs)
            nodes += len(part.model.graph.node) if isinstance(part, DenseSegment) else len(part.nodes)
        assert made.issuperset(flow.outputs)
        assert nodes == len(flow.nodes)

    def test_products_on_one_input_stand_between_two_graphs(self, flow, types):
        projections = [c for c in find_candidates(flow).candidates if c.name in ("q", "v") or c.bias is None][:4]
        projections = [c for c in projections if c.kind == "linear" and c.inputs == projections[-1].inputs]
        parts = cut(flow, types, projections)
        assert [isinstance(part, DenseSegment) for part in parts] == [True, *[False] * len(projections), True]

    def test_nothing_chosen_is_one_graph(self, flow, types):
        (part,) = cut(flow, types, ())
        assert isinstance(part, DenseSegment) and len(part.model.graph.node) == len(flow.nodes)


def inputs_of(flow) -> list[str]:
    return [value.name for value in flow.model.graph.input]


def test_folding_evaluates_what_depends_on_constants_alone(tmp_path):
    model = randomised(Recurrent(nn.LSTM))
    export_onnx(capture(model, (torch.randn(2, 5, 16),)), tmp_path / "model.onnx")
    before = onnx.load(tmp_path / "model.onnx")
    after = fold_constants(before)
    (lstm,) = (node for node in after.graph.node if node.op_type == "LSTM")
    flow = flow_of(after)
    assert set(lstm.input[1:4]) <= flow.constants.keys()
    weight = model.recurrent.weight_hh_l0.detach().numpy()
    i, f, c, o = np.split(weight, 4)
    np.testing.assert_array_equal(flow.array(lstm.input[2])[0], np.concatenate([i, o, f, c]))
    assert any(node.op_type == "Split" for node in before.graph.node)


def sequences(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Nodes on the constants a and b, of three numbers each, the position i and the input x; they make y."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    constants = [numpy_helper.from_array(np.float32([k, k, k]), name) for k, name in enumerate("ab")]
    constants.append(numpy_helper.from_array(np.int64(1), "i"))
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_folding_leaves_sequences_that_something_else_reads():
    """An initializer is a tensor, and a list of tensors is none."""
    model = sequences([
        helper.make_node("SequenceConstruct", ["a", "b"], ["pair"]),
        helper.make_node("SequenceErase", ["pair", "i"], ["one"]),
        helper.make_node("SequenceInsert", ["one", "x"], ["all"]),
        helper.make_node("ConcatFromSequence", ["all"], ["y"], axis=0),
    ])  # fmt: skip
    folded = fold_constants(model)
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in model.graph.node]


def test_folding_evaluates_what_only_passes_through_sequences():
    model = sequences([
        helper.make_node("SequenceConstruct", ["a", "b"], ["pair"]),
        helper.make_node("ConcatFromSequence", ["pair"], ["six"], axis=0),
        helper.make_node("Add", ["x", "six"], ["y"]),
    ])  # fmt: skip
    folded = fold_constants(model)
    assert [node.op_type for node in folded.graph.node] == ["Add"]
    assert flow_of(folded).array("six").tolist() == [0, 0, 0, 1, 1, 1]


def flattened_at(before: list[int | str | None], target: list[int], **given: int) -> int | None:
    shape = numpy_helper.from_array(np.array(target, np.int64), "shape")
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], **given)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, before)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return flattened_from(flow_of(helper.make_model(helper.make_graph([node], "g", [value], [result], [shape]))), 0)


def test_with_allowzero_a_zero_in_a_shape_is_a_size():
    """Without it, it is the size that was there."""
    assert flattened_at([0, 3, 4], [0, 12]) == 1
    assert flattened_at([0, 3, 4], [0, 12], allowzero=1) is None
    assert flattened_at([2, 3, 4], [-1, 12], allowzero=1) == 1


def test_sizes_that_are_free_make_no_width():
    assert flattened_at(["batch", 3, "length", 4], [-1, 12]) is None
    assert flattened_at(["batch", 3, None, 4], [-1, 12]) is None
    assert flattened_at(["batch", 6, 4, 5], [-1, 3, 20]) is None
    assert flattened_at(["batch", 3, "length", 4], [0, -1]) == 1


def test_a_recurrent_weight_that_is_not_finite_stays_dense(tmp_path):
    model, x = randomised(Recurrent(nn.LSTM, num_layers=2)), torch.rand(2, 5, 16)
    exported = onnx.load(export_onnx(capture(model, (x,)), tmp_path / "model.onnx").path)
    weight = next(entry for entry in exported.graph.initializer if entry.name == "recurrent.weight_hh_l1")
    values = numpy_helper.to_array(weight).copy()
    values[3, 3] = np.inf
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    flow = flow_of(fold_constants(exported))
    found = find_candidates(flow)
    assert [candidate.name for candidate in found.candidates if candidate.kind == "recurrent"] == ["recurrent.l0"]
    (reason,) = set(found.reasons.values())
    assert reason.startswith("LSTM reads 'recurrent.weight_") and reason.endswith(
        "which has a value that is not finite"
    )


def test_a_branch_reads_constants_and_values_from_outside():
    """The inner graphs of an If see the values around them; the whole stays one graph, with its reason."""
    model = branching(randomised(nn.Linear(32, 32)).weight.detach().numpy())
    flow = flow_of(model)
    found = find_candidates(flow)
    assert flow.reads[-1] == ("flag", "hidden", "w")
    assert [candidate.nodes for candidate in found.candidates] == [(0,)]
    assert list(found.reasons.values()) == ["If has no sparse form"]


def branching(weight: np.ndarray) -> onnx.ModelProto:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node(op, inputs, ["inner"])], op, [], [out])
        for op, inputs in (("MatMul", ["hidden", "w"]), ("Relu", ["hidden"]))
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["hidden"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    graph = helper.make_graph(nodes, "g", [x, flag], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_zeros_to_begin_with_are_not_made(tmp_path):
    graph = capture(randomised(Recurrent(nn.LSTM, num_layers=2)), (torch.randn(2, 5, 16),), dynamic=FREE)
    export_onnx(graph, tmp_path / "model.onnx")
    model = without_zero_states(fold_constants(onnx.load(tmp_path / "model.onnx")))
    found = [
        (node.op_type, len(node.input)) for node in model.graph.node if node.op_type in ("LSTM", "ConstantOfShape")
    ]
    assert found == [("LSTM", 4), ("LSTM", 4)]
    onnx.checker.check_model(model, full_check=True)


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
    "lengths": ("LSTM", {"inputs": LENGTHS}, "takes the lengths of the sequences"),
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
def test_which_recurrent_node_becomes_a_layer(operator, options, cell):
    """Zeros count in both weights together: a step costs the nonzeros of both."""
    found = find_candidates(flow_of(node_model(operator, **options)))
    if cell is None:
        cell, share = "lstm", (0.99 * 16 + 0.4 * 24) / 40
        assert found.candidates[0].zeros == pytest.approx(share, abs=0.03)
    (candidate,) = found.candidates
    assert (candidate.kind, candidate.recurrence.cell) == ("recurrent", cell)
    assert candidate.recurrence.direction == options.get("direction", "forward")
