"""Norms over channels count the dead ones as zeros: fewer channels, filled up to the dense size and cut again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import randomise
from networks import Net, captured, grouped, image, reasons, table, tokens, vector, worst_error
from rulechecks import check
from torch import Tensor, nn

from l0compress.export.pt2 import export_pt2
from l0compress.gates.attach import compact, gate
from l0compress.graph import CapturedGraph, KeepPlan, capture, find_groups, masked, shrink
from l0compress.graph.nodes.network import op_name

pytestmark = pytest.mark.slow

NORMS = {
    "affine": nn.LayerNorm(8),
    "another epsilon": nn.LayerNorm(8, eps=0.1),
    "without a bias": nn.LayerNorm(8, bias=False),
    "bare": nn.LayerNorm(8, elementwise_affine=False),
}


def between(s: nn.Module, x: Tensor) -> Tensor:
    return s.b(F.gelu(s.n(s.a(x))))


def by_hand(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    spread = x.var(-1, keepdim=True, correction=0)
    return (x - x.mean(-1, keepdim=True)) / (spread + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("name", NORMS)
def test_layer_norm_of_tokens(tmp_path: Path, name: str) -> None:
    layers = {"a": nn.Linear(12, 8), "n": NORMS[name], "b": nn.Linear(8, 3)}
    check(between, tokens(), {"a channels": 8, "a inputs": 12}, onnx=tmp_path, **layers)


def test_what_is_left_is_the_dense_norm_of_what_is_left_and_zeros() -> None:
    layers = {"a": nn.Linear(6, 4), "n": nn.LayerNorm(4), "b": nn.Linear(4, 3)}
    graph = captured(lambda s, x: s.b(s.n(s.a(x))), vector(), **layers)
    small = shrink(graph, KeepPlan.from_kept(find_groups(graph), {"a channels": [1, 3]}))
    state, (x,) = graph.state(), graph.example_args
    hidden = F.linear(x, state["a.weight"], state["a.bias"]) * torch.tensor([0.0, 1.0, 0.0, 1.0])
    norm = nn.LayerNorm(4).double()
    norm.load_state_dict({"weight": state["n.weight"], "bias": state["n.bias"]})
    expected = F.linear(by_hand(hidden, norm)[:, [1, 3]], state["b.weight"][:, [1, 3]], state["b.bias"])
    assert torch.allclose(small.module()(x), expected, rtol=1e-12)


def block(s: Any, x: Tensor) -> Tensor:
    """Two residual branches with a norm before each, and one at the end, as a transformer has them."""
    x = s.stem(x) + s.places
    query, key, value = (layer(s.n1(x)).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (s.q, s.k, s.v))
    x = x + s.o(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    x = x + s.down(F.gelu(s.up(s.n2(x))))
    return s.head(s.n3(x)[:, 0])


def transformer() -> dict[str, nn.Module | nn.Parameter]:
    names = {name: nn.Linear(8, 8) for name in "qkvo"}
    norms = {name: nn.LayerNorm(8) for name in ("n1", "n2", "n3")}
    edges = {"stem": nn.Linear(12, 8), "up": nn.Linear(8, 16), "down": nn.Linear(16, 8), "head": nn.Linear(8, 3)}
    return {**names, **norms, **edges, "places": nn.Parameter(torch.zeros(1, 5, 8))}


def test_the_residual_width_of_a_transformer_goes(tmp_path: Path) -> None:
    expected = {
        "o channels": 8, "stem inputs": 12, "up channels": 16, "q width": 4, "v width": 4, "q blocks": 2
    }  # fmt: skip
    graph = check(block, tokens(), expected, onnx=tmp_path, **transformer())
    assert find_groups(graph).frozen[-1].where == "head.bias"


def test_channels_first_by_permutation(tmp_path: Path) -> None:
    """As ConvNeXt has it: a depthwise convolution, then the norm over channels that are last for a while."""

    def convnext(s: Any, x: Tensor) -> Tensor:
        x = s.stem(x)
        y = s.depthwise(x).permute(0, 2, 3, 1)
        return s.head((x + s.down(F.gelu(s.up(s.norm(y)))).permute(0, 3, 1, 2)).mean((2, 3)))

    layers = {"stem": nn.Conv2d(3, 8, 1), "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8), "norm": nn.LayerNorm(8)}
    layers.update({"up": nn.Linear(8, 12), "down": nn.Linear(12, 8), "head": nn.Linear(8, 3)})
    check(convnext, image(), {"up channels": 12, "stem channels": 8}, onnx=tmp_path, **layers)


@pytest.mark.parametrize("affine", [True, False])
def test_over_channels_and_positions(tmp_path: Path, affine: bool) -> None:
    """The weights have a value a position too; a position is no channel and stays."""
    norm = nn.LayerNorm((8, 8, 8), elementwise_affine=affine)
    layers = {"a": nn.Conv2d(3, 8, 1), "n": norm, "b": nn.Conv2d(8, 4, 1)}
    check(lambda s, x: between(s, x).flatten(2).mean(2), image(), {"a channels": 8}, onnx=tmp_path, **layers)


def test_over_two_kinds_of_channel_at_once() -> None:
    """Hidden tokens and features of a mixer, normalised together."""

    def mixer(s: Any, x: Tensor) -> Tensor:
        return s.d(s.c(s.n(s.b(s.a(x).mT).mT)).mT).flatten(1)

    layers = {"a": nn.Linear(12, 8), "b": nn.Linear(5, 6), "n": nn.LayerNorm((6, 8)), "c": nn.Linear(8, 3)}
    check(mixer, tokens(), {"a channels": 8, "a inputs": 12, "b channels": 6}, **layers, d=nn.Linear(6, 2))


def heads(norm: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def attention(s: Any, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        mixed = F.scaled_dot_product_attention(norm(s, query), norm(s, key), value)
        return s.o(mixed.transpose(1, 2).flatten(2))

    return attention


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4), nn.LayerNorm(4, elementwise_affine=False)])
def test_over_the_width_of_heads_both_go(tmp_path: Path, norm: nn.Module) -> None:
    layers = {name: nn.Linear(12, 16) for name in "qkv"}
    expected = {"q blocks": 4, "q width": 4, "v width": 4, "q inputs": 12, "k inputs": 12, "v inputs": 12}
    forward = heads(lambda s, x: s.norm(x))
    check(forward, tokens(), expected, onnx=tmp_path, **layers, o=nn.Linear(16, 3), norm=norm)


def test_a_head_that_goes_needs_no_gate_at_its_norm() -> None:
    layers = {name: nn.Linear(12, 16) for name in "qkv"}
    groups = grouped(heads(lambda s, x: s.norm(x)), tokens(), **layers, o=nn.Linear(16, 3), norm=nn.LayerNorm(4))
    (read,) = (read for read in groups.reads if read.node == "layer_norm")
    (width,) = (group for group in groups.groups if group.name == "q" and group.kind == "width")
    assert set(read.moves.flatten().tolist()) - {groups.num_moves} == set(width.moves)


@pytest.mark.parametrize("affine", [True, False])
def test_one_norm_group_of_all_channels(tmp_path: Path, affine: bool) -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "n": nn.GroupNorm(1, 8, affine=affine), "b": nn.Conv2d(8, 4, 1)}
    check(lambda s, x: between(s, x).flatten(2).mean(2), image(), {"a channels": 8}, onnx=tmp_path, **layers)


def test_one_norm_group_of_features() -> None:
    layers = {"a": nn.Linear(6, 8), "n": nn.GroupNorm(1, 8), "b": nn.Linear(8, 3)}
    check(between, vector(), {"a channels": 8, "a inputs": 6}, **layers)


def test_channels_that_are_filled_up_with_ones() -> None:
    """Another padding of the user's own is a part of what is normalised, and is not merged with the zeros."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.b(s.n(torch.constant_pad_nd(s.a(x), (1, 2), 1.0))[..., 1:9])

    layers = {"a": nn.Linear(12, 8), "n": nn.LayerNorm(11), "b": nn.Linear(8, 3)}
    check(forward, tokens(), {"a channels": 8, "a inputs": 12, "n channels": 3}, **layers)


def test_what_is_written_in_between_keeps_paddings_apart() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        hidden = s.a(x)
        filled = F.pad(hidden, (0, 2))
        hidden.mul_(3)
        return s.b(s.n(filled)[..., :8] + hidden)

    layers = {"a": nn.Linear(12, 8), "n": nn.LayerNorm(10), "b": nn.Linear(8, 3)}
    check(forward, tokens(), {"a channels": 8, "a inputs": 12, "n channels": 2}, **layers)


def test_channels_folded_with_a_dimension_of_free_size_stay() -> None:
    """Nobody knows how many zeros that would be."""

    def forward(s: Any, x: Tensor) -> Tensor:
        folded = s.a(x).reshape(-1)
        return s.b(F.layer_norm(folded, folded.shape).view(-1, 8))

    groups = grouped(forward, vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert table(groups) == {"a inputs": 6}
    assert reasons(groups, "a.weight") == [(0, "layer_norm", "layer_norm mixes all of it")]


def test_a_branch_filled_up_with_ones_stays() -> None:
    """Nothing filled up with ones is not nothing."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.c(x + s.b(torch.constant_pad_nd(F.gelu(s.a(x)), (0, 1), 1.0)))

    layers = {"a": nn.Linear(6, 4), "b": nn.Linear(5, 6), "c": nn.Linear(6, 3)}
    check(forward, vector(), {"a channels": 4, "a inputs": 6, "b inputs": 1}, **layers)


def test_the_operator_that_returns_its_statistics() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        normal, mean, spread = torch.native_layer_norm(s.a(x), [8], s.n.weight, s.n.bias, 0.1)
        return s.b(normal) + mean * spread

    layers = {"a": nn.Linear(12, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 3)}
    check(forward, tokens(), {"a channels": 8, "a inputs": 12}, **layers)


def test_weights_of_another_precision_leave_the_precision_as_it_is() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        hidden = F.layer_norm(s.a(x).bfloat16(), (8,), s.n.weight, s.n.bias)
        return s.b(hidden.float())

    layers = {"a": nn.Linear(6, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 3)}
    graph = capture(randomise(Net(forward, **layers)), (vector(),))
    plan = KeepPlan.from_kept(find_groups(graph), {"a channels": [0, 3, 4]})
    (x,) = graph.example_args
    assert torch.allclose(shrink(graph, plan).module()(x), masked(graph, plan)(x), atol=0.05)


SECOND_CUTS: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor], dict[str, Any]]] = {
    "layer norm": (between, tokens, {"a": nn.Linear(12, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 3)}),
    "one group": (
        lambda s, x: between(s, x).flatten(2).mean(2),
        image,
        {"a": nn.Conv2d(3, 8, 1), "n": nn.GroupNorm(1, 8), "b": nn.Conv2d(8, 4, 1)},
    ),
    "positions": (
        lambda s, x: between(s, x).flatten(2).mean(2),
        image,
        {"a": nn.Conv2d(3, 8, 1), "n": nn.LayerNorm((8, 8, 8)), "b": nn.Conv2d(8, 4, 1)},
    ),
}


@pytest.mark.parametrize("name", SECOND_CUTS)
def test_two_cuts_are_one(name: str) -> None:
    function, example, layers = SECOND_CUTS[name]
    graph = captured(function, example(), **layers)
    small = shrink(graph, KeepPlan.from_kept(find_groups(graph), {"a channels": [0, 2, 3, 5, 7]}))
    again = KeepPlan.from_kept(find_groups(small), {"a channels": [1, 2]})
    both = KeepPlan.from_kept(find_groups(graph), {"a channels": [2, 3]})
    assert worst_error(small, again) <= 1e-10
    (x,) = graph.example_args
    twice, once = shrink(small, again), shrink(graph, both)
    assert torch.allclose(twice.module()(x), once.module()(x), rtol=1e-10)
    assert sorted(operators(twice)) == sorted(operators(once))


def operators(graph: CapturedGraph) -> list[str]:
    return [op_name(node) for node in graph.nodes() if node.op == "call_function"]


def test_heads_and_width_go_again() -> None:
    layers = {name: nn.Linear(12, 16) for name in "qkv"}
    graph = captured(heads(lambda s, x: s.norm(x)), tokens(), **layers, o=nn.Linear(16, 3), norm=nn.LayerNorm(4))
    whole = find_groups(graph)
    small = shrink(graph, KeepPlan.from_kept(whole, {"q blocks": [0, 2, 3], "q width": [0, 1, 3]}))
    groups = find_groups(small)
    assert {name: size for name, size in table(groups).items() if "inputs" not in name} == {
        "q blocks": 3, "q width": 3, "v width": 4
    }  # fmt: skip
    again = KeepPlan.from_kept(groups, {"q blocks": [1, 2], "q width": [0, 2]})
    both = KeepPlan.from_kept(whole, {"q blocks": [2, 3], "q width": [0, 3]})
    (x,) = graph.example_args
    assert torch.allclose(shrink(small, again).module()(x), shrink(graph, both).module()(x), rtol=1e-10)
    assert worst_error(small, again) <= 1e-10


def test_a_branch_with_a_norm_inside_vanishes_at_the_second_cut_too() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.c(x + s.b(s.n(F.gelu(s.a(x)))))

    layers = {"a": nn.Linear(6, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 6), "c": nn.Linear(6, 3)}
    graph = captured(forward, vector(), **layers)
    small = shrink(graph, KeepPlan.from_kept(find_groups(graph), {"a channels": [0, 3, 4]}))
    gone = KeepPlan.from_kept(find_groups(small), {"a channels": []})
    assert worst_error(small, gone) <= 1e-10
    assert "layer_norm" not in operators(shrink(small, gone))


def test_it_is_written_and_read_again_without_the_package(tmp_path: Path) -> None:
    graph = captured(block, tokens(), **transformer())
    plan = KeepPlan.random(find_groups(graph), 0.5, 2)
    export_pt2(shrink(graph, plan), tmp_path / "small.pt2", reference=masked(graph, plan))
    (x,) = graph.example_args
    found = torch.export.load(tmp_path / "small.pt2").module()(x)
    assert torch.allclose(found, masked(graph, plan)(x), rtol=1e-10)


def test_what_is_dead_gets_no_gradient_and_the_rest_the_dense_one() -> None:
    graph = captured(block, tokens(), **transformer())
    plan = KeepPlan.random(find_groups(graph), 0.5, 4)
    small, dense, (x,) = shrink(graph, plan), masked(graph, plan), graph.example_args
    network = small.module().train()
    network(x).square().sum().backward()
    dense.train()(x).square().sum().backward()
    keeps, slopes = plan.parameter_keeps(), {name: p.grad for name, p in dense.named_parameters()}
    for name, parameter in network.named_parameters():
        expected = slopes[name]
        assert expected is not None and parameter.grad is not None
        for dim, keep in enumerate(keeps[name]):
            expected = expected if keep is None else expected.index_select(dim, keep)
        assert torch.allclose(parameter.grad, expected, rtol=1e-9, atol=1e-12), name


def test_compaction_goes_on_with_the_gates_of_what_is_left() -> None:
    """Twice, as it happens in training: what the gated network computes stays what it was."""
    gated = gate(captured(block, tokens(), **transformer())).to(torch.float64)
    generator = torch.Generator().manual_seed(3)
    (x,) = gated.groups.graph.example_args
    for _ in range(2):
        with torch.no_grad():
            shut = torch.rand(gated.groups.num_moves, generator=generator) < 0.4
            gated.gates.log_alpha[shut] = -30.0
            before = gated.eval()(x)
        smaller = compact(gated).gated
        assert smaller.groups.num_moves < gated.groups.num_moves
        assert torch.allclose(smaller.eval()(x), before, rtol=1e-9, atol=1e-12)
        gated = smaller
