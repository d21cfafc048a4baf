"""An operator from elsewhere is frozen by name until somebody says how channels pass through it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from networks import captured, grouped, reasons, table, vector
from rulechecks import assert_exact
from torch import Tensor, fx, nn

import l0compress as l0
from l0compress.errors import InputError
from l0compress.graph import Cut, Step, Value, along, find_weights
from l0compress.graph.operators import record

LAYERS = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 4)}
EXPECTED = {"a channels": 8, "a inputs": 6}


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(record, "_TABLE", dict(record._TABLE))


@torch.library.custom_op("l0tests::cubed", mutates_args=())
def cubed(x: Tensor) -> Tensor:
    return x**3 + x


@torch.library.custom_op("l0tests::mirrored", mutates_args=())
def mirrored(x: Tensor, width: int) -> Tensor:
    """Channels in reverse order; ``width`` has to be their count."""
    assert x.shape[1] == width
    return x.flip(1) * 2


@torch.library.custom_op("l0tests::add", mutates_args=())
def add(x: Tensor, y: Tensor) -> Tensor:
    """Nothing like the add of PyTorch: channels are mixed."""
    return x + y.cumsum(1)


@torch.library.custom_op("l0tests::doubled_linear", mutates_args=())
def doubled_linear(x: Tensor, weight: Tensor) -> Tensor:
    return 2 * F.linear(x, weight) + 1


doubled_linear.register_fake(lambda x, weight: x.new_empty((*x.shape[:-1], weight.shape[0])))
cubed.register_fake(torch.empty_like)
mirrored.register_fake(lambda x, _: torch.empty_like(x))
add.register_fake(lambda x, _: torch.empty_like(x))


def with_cubed(s: nn.Module, x: Tensor) -> Tensor:
    return s.b(cubed(s.a(x)))


def _elements(node: fx.Node) -> int:
    return math.prod(node.meta["val"].shape)


def _pairs(node: fx.Node) -> int:
    """Each channel with each of them."""
    batch, width = node.meta["val"].shape
    return int(batch) * int(width) ** 2


def with_mirrored(s: nn.Module, x: Tensor) -> Tensor:
    return s.b(F.gelu(mirrored(s.a(x), 8)))


def mirrored_rule(step: Step) -> Value:
    return step.args[0].mapped(lambda plane: plane.flip(1), step.shape)


def mirrored_rewrite(cut: Cut) -> None:
    cut.node.update_arg(1, cut.result.shape[1])


def test_without_a_rule_it_is_frozen_by_name() -> None:
    groups = grouped(with_cubed, vector(), **LAYERS)
    assert table(groups) == {"a inputs": 6}
    reason = "no rule for l0tests.cubed.default; add one with l0compress.register_operator"
    assert (0, "l0tests::cubed", reason) in reasons(groups, "a.weight")


def test_it_follows_the_rule_of_another_operator() -> None:
    l0.register_rule("l0tests::cubed", "relu")
    assert_exact(captured(with_cubed, vector(), **LAYERS), EXPECTED)


def test_it_follows_a_rule_and_a_rewrite_of_its_own() -> None:
    l0.register_rule("l0tests::mirrored", mirrored_rule, rewrite=mirrored_rewrite)
    assert_exact(captured(with_mirrored, vector(), **LAYERS), EXPECTED)


def test_without_its_rewrite_the_literal_size_is_wrong() -> None:
    l0.register_rule("l0tests::mirrored", mirrored_rule)
    graph = captured(with_mirrored, vector(), **LAYERS)
    small = l0.shrink(graph, l0.KeepPlan.random(l0.find_groups(graph), 0.5))
    with pytest.raises(AssertionError):
        small.module()(*graph.example_args)


def test_a_record_says_the_same_as_a_rule_and_a_rewrite() -> None:
    l0.register_operator("l0tests::mirrored", l0.Operator(label=mirrored_rule, rewrite=mirrored_rewrite))
    assert_exact(captured(with_mirrored, vector(), **LAYERS), EXPECTED)


def test_its_multiply_accumulates_go_with_the_channels_of_the_result() -> None:
    """One for each element of ``(batch, 8)``: those of a plan are those of the small graph."""
    plain = l0.cost(captured(with_cubed, vector(), **LAYERS)).macs
    l0.register_operator("l0tests::cubed", l0.Operator(label=lambda step: step.args[0], macs=_elements))
    graph = captured(with_cubed, vector(), **LAYERS)
    assert l0.cost(graph).macs == plain + 8
    plan = l0.KeepPlan.random(l0.find_groups(graph), 0.5)
    assert plan.cost == l0.cost(l0.shrink(graph, plan))


def test_its_label_may_say_what_its_multiply_accumulates_go_with() -> None:
    def label(step: Step) -> Value:
        step.record_macs(_pairs(step.node), (step.args[0].planes[0], step.args[0].planes[0]))
        return step.args[0]

    l0.register_operator("l0tests::cubed", l0.Operator(label=label, macs=_pairs))
    graph = captured(with_cubed, vector(), **LAYERS)
    plan = l0.KeepPlan.random(l0.find_groups(graph), 0.5)
    assert plan.cost == l0.cost(l0.shrink(graph, plan))


def test_an_operator_that_follows_linear_has_weights_and_costs_what_linear_costs() -> None:
    net = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 4)}
    plain = captured(lambda s, x: s.b(s.a(x)), vector(), **net)
    l0.register_operator("l0tests::doubled_linear", "linear")
    graph = captured(lambda s, x: s.b(doubled_linear(x, s.a.weight)), vector(), **net)
    assert l0.cost(graph).macs == l0.cost(plain).macs
    assert [weight.name for weight in find_weights(graph)] == ["a.weight", "b.weight"]
    assert_exact(graph, {"a channels": 8})


def test_what_is_left_at_width_zero_is_not_taken_over() -> None:
    """``2 * (x @ w.T) + 1`` over nothing is 1 and no bias, so the last channel that it reads stays."""
    l0.register_operator("l0tests::doubled_linear", "linear")
    net = {"a": nn.Linear(6, 3), "b": nn.Linear(3, 4)}
    graph = captured(lambda s, x: x + s.a(x)[:, :1] * 0 + doubled_linear(s.a(x), s.b.weight)[:, :1], vector(), **net)
    plan = l0.KeepPlan.random(l0.find_groups(graph), 0.0)
    assert "b.weight" in l0.shrink(graph, plan).state()


def test_an_operator_of_the_same_name_elsewhere_is_another() -> None:
    groups = grouped(lambda s, x: s.b(add(s.a(x), s.a(x))), vector(), **LAYERS)
    assert table(groups) == {"a inputs": 6}


def test_a_rule_for_an_operator_of_pytorch() -> None:
    """``fft`` along positions leaves channels alone; the package does not know that."""

    def net(s: nn.Module, x: Tensor) -> Tensor:
        return s.b(torch.fft.fft(s.a(x), dim=0).abs())

    assert "a channels" not in table(grouped(net, vector(), **LAYERS))
    l0.register_rule("aten::fft_fft", lambda step: Value(step.shape, step.args[0].planes))
    assert table(grouped(net, vector(), **LAYERS)) == EXPECTED


@pytest.mark.parametrize(
    "operator, rule, message",
    [
        ("cubed", "relu", "is not the name of an operator"),
        ("l0tests::cubed.default", "relu", "is not the name of an operator"),
        ("l0tests::nothing", "relu", "PyTorch has no operator l0tests::nothing"),
        ("aten::relu", "gelu", "aten::relu already has a rule"),
        ("aten::relu_", "gelu", "aten::relu_ already has a rule"),
        ("l0tests::cubed", "fft_fft", "cannot follow the rule of 'fft_fft', which has none"),
    ],
)
def test_what_cannot_be_registered_says_why(operator: str, rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        l0.register_rule(operator, rule)
    assert "Nothing was changed." in str(caught.value)


def test_a_rule_may_be_replaced_on_purpose() -> None:
    l0.register_rule("l0tests::cubed", "cumsum")
    assert table(grouped(with_cubed, vector(), **LAYERS)) == {"a inputs": 6}
    l0.register_rule("l0tests::cubed", "relu", replace=True)
    assert table(grouped(with_cubed, vector(), **LAYERS)) == EXPECTED


def test_a_record_without_a_label_is_refused() -> None:
    with pytest.raises(InputError, match=r"the record of l0tests::cubed has no label.* Nothing was changed"):
        l0.register_operator("l0tests::cubed", l0.Operator(macs=_elements))


@pytest.mark.parametrize(
    "rule, message",
    [
        (lambda _: Value((1, 2)), r"returned values of shapes \[\(1, 2\)\]"),
        (lambda step: (Value(step.shape), Value(step.shape)), "returned values of shapes"),
        (lambda step: Value(step.shape, (torch.zeros(8),)), "returned a plane .* that is not an int64 tensor"),
        (lambda step: Value(step.shape, (along(torch.arange(8), 1, (1, 8)),)), "returned a plane"),
    ],
)
def test_a_rule_that_returns_the_wrong_shape_is_named(rule: record.Rule, message: str) -> None:
    l0.register_rule("l0tests::cubed", rule)
    with pytest.raises(InputError, match=message):
        grouped(with_cubed, vector(), **LAYERS)
