"""Capture: inputs and outputs of any form, dynamic sizes, train and eval mode, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0compress.errors import CaptureError
from l0compress.graph import CapturedGraph, capture, cost, find_groups


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Branches(TwoLayers):
    """Nested inputs, keyword-only arguments, nested outputs."""

    def forward(self, pair: tuple[Tensor, Tensor], *, extra: dict[str, Tensor], scale: float = 2.0) -> Any:
        hidden = torch.tanh(self.first(pair[0] + pair[1]))
        return {"logits": self.second(hidden) * scale, "parts": (hidden, extra["bias"] + 1)}


def x(batch: int = 2, width: int = 4) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(batch))


def test_positional_inputs() -> None:
    model = TwoLayers()
    assert torch.equal(capture(model, (x(),)).module()(x(5)), model(x(5)))


def test_keyword_inputs() -> None:
    model = TwoLayers()
    assert torch.equal(capture(model, (), {"x": x()}).module()(x=x(5)), model(x(5)))


def test_nested_inputs_and_outputs_keep_their_structure() -> None:
    model = Branches()
    graph = capture(model, ((x(), x(2)),), {"extra": {"bias": torch.zeros(2)}, "scale": 3.0})
    found = graph.module()((x(3), x(3)), extra={"bias": torch.ones(3)}, scale=3.0)
    expected = model((x(3), x(3)), extra={"bias": torch.ones(3)}, scale=3.0)
    assert torch.equal(found["logits"], expected["logits"])
    assert [torch.equal(a, b) for a, b in zip(found["parts"], expected["parts"], strict=True)] == [True, True]


def test_parameters_keep_their_names() -> None:
    graph = capture(TwoLayers(), (x(),))
    assert sorted(graph.state()) == ["first.bias", "first.weight", "second.bias", "second.weight"]
    assert sorted(graph.module().state_dict()) == sorted(graph.state())


def test_a_batch_of_one_is_doubled_so_that_it_can_be_dynamic() -> None:
    graph = capture(TwoLayers(), (x(1),))
    assert graph.batch_size == 2
    assert graph.module()(x(1)).shape == (1, 2)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)
        self.positions = nn.Parameter(torch.randn(12, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens) + self.positions[: tokens.shape[1]])


def test_batch_and_sequence_may_both_be_dynamic() -> None:
    model, longer = Positions(), torch.randint(0, 10, (3, 9))
    graph = capture(model, (torch.zeros(2, 5, dtype=torch.long),), dynamic="batch+sequence")
    assert torch.equal(graph.module()(longer), model(longer))


def test_no_dynamic_size_fixes_the_batch() -> None:
    graph = capture(TwoLayers(), (x(1),), dynamic=None)
    assert graph.batch_size == 1
    assert graph.dynamic_shapes is None


def test_a_mapping_says_exactly_which_sizes_are_dynamic() -> None:
    graph = capture(Positions(), (torch.zeros(2, 5, dtype=torch.long),), dynamic={"tokens": {1: torch.export.Dim.AUTO}})
    assert graph.module()(torch.zeros(2, 7, dtype=torch.long)).shape == (2, 7, 2)


AUTO = torch.export.Dim.AUTO


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        ("sequence", r"dynamic='sequence': expected 'auto', 'batch', 'batch\+sequence', None, or a dict"),
        (True, r"dynamic=True: expected"),
        (["x"], r"dynamic=\['x'\]: expected"),
        ({"y": {0: AUTO}}, r"names the input 'y', but the model is called with 'x'\. Nothing was changed\. Use those"),
        ({"x": {0: "batch"}}, r"dynamic=\{'x': \{0: 'batch'\}\}, where the input has 2 dimensions: expected"),
        ({"x": {2: AUTO}}, r"where the input has 2 dimensions: expected"),
        ({"x": {-1: AUTO}}, r"where the input has 2 dimensions: expected"),
        ({"x": [0]}, r"dynamic=\{'x': \[0\]\}, where the input has 2 dimensions: expected"),
    ],
)
def test_free_sizes_that_fit_no_input_are_refused(dynamic: Any, said: str) -> None:
    with pytest.raises(CaptureError, match=said) as caught:
        capture(TwoLayers(), (x(3),), dynamic=dynamic)
    assert "Nothing was changed." in str(caught.value)


def test_free_sizes_of_one_input_alone() -> None:
    graph = capture(TwoLayers(), (x(3),), dynamic={"x": {0: torch.export.Dim("rows", min=2), 1: None}})
    assert graph.module()(x(7)).shape == (7, graph.module()(x(3)).shape[1])


def test_an_input_without_its_tuple_is_refused() -> None:
    with pytest.raises(
        CaptureError, match=r"^args is a tensor, but must be a tuple of inputs\. .* Pass \(x,\) for x\.$"
    ):
        capture(TwoLayers(), x(3))  # pyright: ignore[reportArgumentType]


class FixedBatch(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(2, 4))


def test_a_model_that_fixes_its_batch_is_refused() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(FixedBatch(), (x(),))
    assert str(caught.value) == (
        "the model's own code fixes dimension 0 of input 'x' to 2, so that size cannot be dynamic. Nothing was "
        "changed. Use x.shape[0] or -1 instead of a literal or len(x) in the model's forward, or capture with "
        "dynamic=None for this one size. Where the batch is another dimension, say which: dynamic={'x': 1}."
    )
    assert cost(capture(FixedBatch(), (x(),), dynamic=None)).params == 58


class DataDependent(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))) if x.sum() > 0 else self.second(self.first(x))


def test_control_flow_that_depends_on_data_is_refused() -> None:
    message = (
        r"(?s)torch\.export cannot capture DataDependent: .*Nothing was changed\. Make the model's forward free of "
        r"data-dependent Python control flow, or check that the example inputs have the shape, dtype and keywords that "
        r"it expects\.$"
    )
    with pytest.raises(CaptureError, match=message):
        capture(DataDependent(), (x(),))


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        CaptureError, match=r"the example inputs do not fit TwoLayers\.forward\(x: .*\) .*: missing a req"
    ):
        capture(TwoLayers(), ())


class AnyKeyword(nn.Module):
    def forward(self, x: Tensor, **more: Tensor) -> Tensor:
        return x * more["scale"]


def test_free_sizes_of_unnamed_keywords_are_refused_and_fixed_ones_are_not() -> None:
    """torch.export looks for them by two names at once."""
    message = (
        r"^AnyKeyword\.forward takes 'scale' through \*\*more, where torch\.export cannot leave sizes free\. Nothing "
        r"was changed\. Wrap the model in a module whose forward names its inputs, or pass dynamic=None to fix all "
        r"sizes\.$"
    )
    with pytest.raises(CaptureError, match=message):
        capture(AnyKeyword(), (torch.ones(2, 3),), {"scale": torch.ones(2, 1)})
    fixed = capture(AnyKeyword(), (torch.ones(2, 3),), {"scale": torch.full((2, 1), 2.0)}, dynamic=None)
    assert torch.equal(fixed.module()(torch.ones(2, 3), scale=torch.full((2, 1), 2.0)), torch.full((2, 3), 2.0))


class Regularised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).mean(2))


def test_train_mode_drops_out_and_updates_statistics_as_the_model_does() -> None:
    model, batch = Regularised(), torch.randn(16, 3, 10)
    network = capture(model, (torch.randn(2, 3, 10),)).module()
    assert not network.training
    network.train(), model.train()
    outputs = []
    for module in (network, model):
        torch.manual_seed(5)
        outputs.append(module(batch))
    assert torch.allclose(*outputs, atol=1e-6)
    assert torch.allclose(network.state_dict()["norm.running_mean"], model.norm.running_mean)
    assert torch.allclose(network.state_dict()["norm.running_var"], model.norm.running_var)
    assert not torch.equal(model.norm.running_mean, torch.zeros(6))
    network.eval(), model.eval()
    assert torch.allclose(network(batch), model(batch), atol=1e-6)


def test_gradients_reach_the_copy_and_not_the_model() -> None:
    model = TwoLayers()
    graph = capture(model, (x(),))
    network = graph.module()
    network(x(3)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        network.get_parameter("first.weight").zero_()
    assert torch.equal(graph.state()["first.weight"], model.first.weight)


class Regions(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = x.mean(1, keepdim=True)
        with torch.autocast("cpu", enabled=False):
            hidden = self.first(x - shift)
        return self.second(torch.tanh(hidden))


def test_regions_are_inlined() -> None:
    model = Regions()
    graph = capture(model, (x(),))
    assert {node.op for node in graph.nodes()} == {"placeholder", "get_attr", "call_function", "output"}
    assert not any("wrap_with" in str(node.target) for node in graph.nodes())
    assert torch.allclose(graph.module()(x(3)), model(x(3)))
    assert [group.name for group in find_groups(graph).groups] == ["first"]


class Auxiliary(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.first(x))
        aux = self.aux(hidden)
        return (self.second(hidden), aux) if self.training else self.second(hidden)


def test_dead_branches_are_gone() -> None:
    graph = capture(Auxiliary().train(), (x(),))
    assert sorted(graph.state()) == ["first.bias", "first.weight", "second.bias", "second.weight"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(tokens)))


def test_tied_weights_stay_tied() -> None:
    graph = capture(Tied(), (torch.zeros(2, 5, dtype=torch.long),))
    network = graph.module()
    assert cost(graph).params == 40
    assert len(list(network.parameters())) == 1


def test_an_exported_program_is_captured_with_its_own_inputs(tmp_path: Path) -> None:
    model, path = TwoLayers().eval(), tmp_path / "model.pt2"
    program = torch.export.export(model, (x(),), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
    torch.export.save(program, path)
    graph = capture(torch.export.load(path))
    assert torch.equal(graph.module()(x(7)), model(x(7)))
    assert torch.equal(graph.example_args[0], x())


def test_the_model_itself_is_untouched() -> None:
    model = Regularised().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capture(model, (torch.randn(2, 3, 10),))
    assert model.training and not model.norm.training and model.drop.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class MadeInside(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.full((4,), 0.5) + F.pad(torch.zeros(x.shape[0], 3), (1, 0)))


def test_float64_reaches_tensors_that_the_model_makes_itself() -> None:
    model = MadeInside()
    graph = capture(model, (x(),)).to(torch.float64)
    assert {node.meta["val"].dtype for node in graph.nodes() if isinstance(node.meta.get("val"), Tensor)} == {
        torch.float64
    }
    assert torch.allclose(graph.module()(x(3).double()), model.double()(x(3).double()), atol=1e-12)


def test_other_weights_do_not_change_the_graph_they_came_from() -> None:
    graph: CapturedGraph = capture(TwoLayers(), (x(),))
    state = {name: torch.zeros_like(tensor) for name, tensor in graph.state().items()}
    assert graph.with_state(state).module()(x(3)).abs().max() == 0
    assert graph.module()(x(3)).abs().max() > 0
    with pytest.raises(KeyError, match=r"second\.bias"):
        graph.with_state({name: tensor for name, tensor in state.items() if name != "second.bias"})
