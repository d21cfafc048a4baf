"""What shrinking does to weights, literal arguments and names, against references written by hand for each model."""

from __future__ import annotations

import gc
from itertools import pairwise
from pathlib import Path

import models
import pytest
import torch
import torch.nn.functional as F
from networks import Net, captured, changes, image, tokens, vector, worst_error
from torch import Tensor, fx, nn

from l0compress.errors import PlanError
from l0compress.graph import CapturedGraph, KeepPlan, capture, cost, find_groups, masked, shrink
from l0compress.graph.nodes.network import op_name


def plan_of(graph: CapturedGraph, **kept: list[int]) -> KeepPlan:
    """Keep lists by group name, with ``_`` for the blank."""
    return KeepPlan.from_kept(find_groups(graph), {name.replace("_", " "): keep for name, keep in kept.items()})


def node_of(graph: CapturedGraph, name: str) -> fx.Node:
    return next(node for node in graph.nodes() if op_name(node) == name)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_multilayer_perceptron_is_the_formula_on_what_is_kept() -> None:
    graph = captured(lambda s, x: s.b(F.gelu(s.a(x))), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    small = shrink(graph, plan_of(graph, a_channels=[1, 5, 6], a_inputs=[0, 2, 4, 5]))
    old, x = graph.state(), torch.randn(4, 6, dtype=torch.float64)
    hidden = F.gelu(x[:, [0, 2, 4, 5]] @ old["a.weight"][[1, 5, 6]][:, [0, 2, 4, 5]].T + old["a.bias"][[1, 5, 6]])
    assert close(small.module()(x), hidden @ old["b.weight"][:, [1, 5, 6]].T + old["b.bias"])


def test_a_network_of_convolutions_is_the_dense_one_with_zeroed_readers() -> None:
    layers = {"a": nn.Conv2d(3, 8, 3), "n": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 6, 3), "c": nn.Linear(96, 4)}
    model = models.randomise(Net(lambda s, x: s.c(F.gelu(s.b(F.gelu(s.n(s.a(x))))).flatten(1)), **layers)).double()
    graph = capture(model, (image().double(),))
    small = shrink(graph, plan_of(graph, a_channels=[0, 3, 4, 7], b_channels=[1, 2]))
    with torch.no_grad():
        model.b.weight[:, [1, 2, 5, 6]] = 0
        model.c.weight.view(4, 6, 16)[:, [0, 3, 4, 5]] = 0
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert close(small.module()(x), model(x))
    assert {name: tuple(tensor.shape) for name, tensor in small.state().items() if tensor.dim()} == {
        "a.weight": (4, 3, 3, 3),
        "a.bias": (4,),
        **{f"n.{name}": (4,) for name in ("weight", "bias", "running_mean", "running_var")},
        "b.weight": (2, 4, 3, 3),
        "b.bias": (2,),
        "c.weight": (4, 32),
        "c.bias": (4,),
    }


def test_a_residual_stream_is_cut_in_every_layer_that_it_passes() -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 3, padding=1), "c": nn.Conv2d(8, 4, 1)}
    model = models.randomise(Net(lambda s, x: s.c((h := s.a(x)) + s.b(F.gelu(h))), **layers)).double()
    graph = capture(model, (image().double(),))
    small = shrink(graph, plan_of(graph, a_channels=[2, 3, 6]))
    with torch.no_grad():
        model.b.weight[:, [0, 1, 4, 5, 7]] = 0
        model.c.weight[:, [0, 1, 4, 5, 7]] = 0
    assert close(small.module()(image().double()), model(image().double()))


def test_a_concatenation_is_read_at_shifted_positions() -> None:
    layers = {"a": nn.Linear(6, 5), "b": nn.Linear(6, 4), "c": nn.Linear(9, 3)}
    model = models.randomise(Net(lambda s, x: s.c(F.gelu(torch.cat([s.a(x), s.b(x)], 1))), **layers)).double()
    graph = capture(model, (vector().double(),))
    small = shrink(graph, plan_of(graph, a_channels=[0, 4], b_channels=[1, 2]))
    with torch.no_grad():
        model.c.weight[:, [1, 2, 3, 5, 8]] = 0
    assert close(small.module()(vector().double()), model(vector().double()))


def attention(s: nn.Module, x: Tensor) -> Tensor:
    query, key, value = (layer(x).view(x.shape[0], -1, 4, 4).transpose(1, 2) for layer in (s.q, s.k, s.v))
    return s.o(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape[0], -1, 16))


def test_attention_keeps_the_scale_of_the_dense_head() -> None:
    graph = captured(attention, tokens(), **{name: nn.Linear(12, 16) for name in "qkv"}, o=nn.Linear(16, 3))
    plan = plan_of(graph, q_blocks=[0, 3], q_width=[1, 2], v_width=[0, 1, 3])
    small, old, x = shrink(graph, plan), graph.state(), tokens().double()
    assert node_of(small, "scaled_dot_product_attention").kwargs["scale"] == 0.5
    expected = old["o.bias"]
    for head in (0, 3):
        rows = {"q": [1, 2], "k": [1, 2], "v": [0, 1, 3]}
        rows = {name: [4 * head + row for row in keep] for name, keep in rows.items()}
        query, key, value = (x @ old[f"{n}.weight"][rows[n]].T + old[f"{n}.bias"][rows[n]] for n in "qkv")
        expected = expected + ((query @ key.mT / 2).softmax(-1) @ value) @ old["o.weight"][:, rows["v"]].T
    assert close(small.module()(x), expected)


def test_a_grouped_convolution_counts_the_groups_that_are_left() -> None:
    layers = {"a": nn.Conv2d(3, 12, 1), "b": nn.Conv2d(12, 8, 3, groups=4), "c": nn.Conv2d(8, 4, 1)}
    model = models.randomise(Net(lambda s, x: s.c(F.gelu(s.b(s.a(x)))), **layers)).double()
    graph = capture(model, (image().double(),))
    small = shrink(graph, plan_of(graph, a_blocks=[0, 2, 3], a_width=[0, 2], b_width=[1]))
    assert node_of(small, "conv2d").args[6:] == ()
    grouped = [node for node in small.nodes() if op_name(node) == "conv2d"][1]
    assert grouped.args[6] == 3
    assert tuple(small.state()["b.weight"].shape) == (3, 2, 3, 3)
    with torch.no_grad():
        model.b.weight[:, 1] = 0
        model.c.weight[:, [0, 2, 3, 4, 6]] = 0
    assert close(small.module()(image().double()), model(image().double()))


def test_split_sizes_follow_their_parts() -> None:
    graph = captured(
        lambda s, x: s.b(torch.cat([(parts := s.a(x).split([3, 5], 1))[1], parts[0] ** 2], 1)),
        vector(),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 3),
    )
    groups = find_groups(graph)
    keep = torch.ones(groups.num_moves, dtype=torch.bool)
    keep[[0, 2, 4, 5]] = False
    plan = KeepPlan.from_keep(groups, keep)
    sizes = node_of(shrink(graph, plan), "split_with_sizes").args[1]
    kept = plan.parameter_keeps()["a.weight"][0]
    assert sizes == [int((kept < 3).sum()), int((kept >= 3).sum())]
    assert worst_error(graph, plan) < 1e-12


def test_padded_shortcuts_pad_by_what_is_left_of_the_padding() -> None:
    """ResNet option A: the block's own channels decide which of the padded ones live."""
    graph = captured(
        lambda s, x: s.c(F.gelu(F.pad((h := s.a(x))[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + s.b(h))),
        image(),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(4, 8, 1, 2),
        c=nn.Conv2d(8, 3, 1),
    )
    groups = find_groups(graph)
    whole = {name: torch.arange(size) for name, size in (("b.weight", 8), ("a.weight", 4))}
    for move in range(groups.num_moves):
        keep = torch.ones(groups.num_moves, dtype=torch.bool)
        keep[move] = False
        plan = KeepPlan.from_keep(groups, keep)
        stays = plan.parameter_keeps()["b.weight"][0]
        stays = whole["b.weight"] if stays is None else stays
        padding = node_of(shrink(graph, plan), "pad").args[1][4:]
        assert padding == [int((stays < 2).sum()), int((stays >= 6).sum())]
        assert worst_error(graph, plan) < 1e-12


def folded(s: nn.Module, x: Tensor) -> Tensor:
    """Batch and heads folded into one dimension, as ``nn.MultiheadAttention`` does."""
    batch, length, _ = x.shape
    query, key, value = (
        layer(x).view(batch, length, 4, 4).transpose(1, 2).reshape(batch * 4, length, 4) for layer in (s.q, s.k, s.v)
    )
    mixed = torch.bmm(torch.bmm(query, key.mT).softmax(-1), value)
    return s.o(mixed.view(batch, 4, length, 4).transpose(1, 2).reshape(batch, length, 16))


def test_a_batch_with_heads_folded_in_stays_dynamic() -> None:
    graph = captured(folded, tokens(), **{name: nn.Linear(12, 16) for name in "qkv"}, o=nn.Linear(16, 3))
    groups = find_groups(graph)
    assert {(group.kind, len(group.moves)) for group in groups.groups} >= {("blocks", 4)}
    for seed in range(3):
        plan = KeepPlan.random(groups, 0.5, seed)
        assert worst_error(graph, plan) < 1e-12
        assert changes(graph, plan)


def test_cut_inputs_are_selected_once_even_when_cut_twice() -> None:
    graph = captured(lambda s, x: s.b(F.gelu(s.a(x))), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    once = shrink(graph, plan_of(graph, a_inputs=[0, 2, 3, 5]))
    twice = shrink(once, plan_of(once, a_inputs=[1, 3]))
    selections = [node for node in twice.nodes() if op_name(node) == "index_select"]
    assert len(selections) == 1
    assert twice.state()[str(selections[0].args[2].target)].tolist() == [2, 5]
    direct = shrink(graph, plan_of(graph, a_inputs=[2, 5]))
    assert torch.equal(twice.module()(vector().double()), direct.module()(vector().double()))


def test_what_a_cut_selects_never_has_the_name_of_another_selection_on_the_way() -> None:
    graph = captured(lambda s, x: s.b(F.gelu(s.a(x))), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    on_the_way = [graph]
    for kept in ([0, 1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2], [0, 1]):
        on_the_way.append(shrink(on_the_way[-1], plan_of(on_the_way[-1], a_inputs=kept)))
    new = [set(after.state()) - set(before.state()) for before, after in pairwise(on_the_way)]
    assert [len(names) for names in new] == [1, 1, 1, 1]
    assert len(set.union(*new)) == 4


def test_names_stay_and_ties_stay() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    graph = captured(
        lambda s, t: F.linear(s.p(F.gelu(s.e(t))), s.e.weight), ids, e=nn.Embedding(9, 6), p=nn.Linear(6, 6)
    )
    small = shrink(graph, KeepPlan.random(find_groups(graph), 0.5))
    assert list(small.state()) == list(graph.state())
    assert cost(small).params == 9 * 3 + 3 * 3 + 3
    assert isinstance(small.module().get_parameter("e.weight"), nn.Parameter)


def test_nothing_of_the_dense_weights_is_kept_in_memory() -> None:
    graph = captured(lambda s, x: s.b(F.gelu(s.a(x))), vector(64), a=nn.Linear(64, 256), b=nn.Linear(256, 3))
    small = shrink(graph, KeepPlan.random(find_groups(graph), 0.25))
    for tensor in small.state().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    names = {id(tensor) for tensor in graph.graph_module.state_dict(keep_vars=True).values()}
    assert not names & {id(thing) for thing in gc.get_referents(*vars(small.graph_module).values())}


def test_the_dense_graph_is_left_alone() -> None:
    graph = captured(lambda s, x: s.b(F.gelu(s.a(x))), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    before, code = {name: tensor.clone() for name, tensor in graph.state().items()}, graph.graph_module.code
    plan = KeepPlan.random(find_groups(graph), 0.5)
    shrink(graph, plan), masked(graph, plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state().items())
    assert graph.graph_module.code == code


def test_a_shrunk_module_can_be_exported_saved_and_captured_again(tmp_path: Path) -> None:
    graph = captured(attention, tokens(), **{name: nn.Linear(12, 16) for name in "qkv"}, o=nn.Linear(16, 3))
    small = shrink(graph, KeepPlan.random(find_groups(graph), 0.5))
    program = torch.export.export(small.module(), small.example_args, dynamic_shapes=small.dynamic_shapes, strict=False)
    torch.export.save(program, tmp_path / "small.pt2")
    again = capture(torch.export.load(tmp_path / "small.pt2"))
    x = torch.randn(5, 5, 12, dtype=torch.float64)
    assert torch.equal(again.module()(x), small.module()(x))
    assert cost(again) == cost(small)


def test_a_plan_of_another_graph_is_refused() -> None:
    graph = captured(lambda s, x: s.b(F.gelu(s.a(x))), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    other = captured(lambda s, x: s.b(F.gelu(s.a(x)) * 2), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    plan = KeepPlan.random(find_groups(graph))
    message = r"^the plan was made for another graph\. Nothing was changed\. Make it with find_groups\(graph\)\.$"
    with pytest.raises(PlanError, match=message):
        shrink(other, plan)
    with pytest.raises(PlanError, match=message):
        masked(other, plan)
