"""Whole branches go: a width may reach zero wherever the output still depends on the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import captured, changes, image, tokens, vector, worst_error
from torch import Tensor, nn
from torch.nn import functional as F

from l0compress.errors import PlanError
from l0compress.export.onnx import export_onnx
from l0compress.export.pt2 import export_pt2
from l0compress.gates.reach import smallest_keep
from l0compress.graph import CapturedGraph, KeepPlan, cost, find_groups, masked, shrink
from l0compress.graph.nodes.network import op_name


def emptied(graph: CapturedGraph, *names: str) -> KeepPlan:
    """The plan that drops every move of the named groups."""
    groups = find_groups(graph)
    known = {f"{group.name} {group.kind}" for group in groups.groups}
    assert set(names) <= known, known
    return KeepPlan.from_kept(groups, {name: [] for name in names})


def check_vanished(graph: CapturedGraph, plan: KeepPlan) -> CapturedGraph:
    """Exact at several batch sizes, not a plan that does nothing, and as cheap as predicted."""
    small = shrink(graph, plan)
    assert worst_error(graph, plan) <= 1e-10
    assert changes(graph, plan)
    assert cost(small) == plan.cost
    assert all(0 not in tensor.shape for tensor in small.state().values())
    return small


def names_of(graph: CapturedGraph) -> set[str]:
    return set(graph.state())


def operators(graph: CapturedGraph) -> list[str]:
    return [op_name(node) for node in graph.nodes() if node.op == "call_function"]


def beside_a_branch(forward: Any, *, bias: bool = True, **layers: nn.Module) -> CapturedGraph:
    """A network of a stem and a head over eight features, with a branch (``up``, ``down``) between them."""
    branch = {"up": nn.Linear(8, 5), "down": nn.Linear(5, 8, bias=bias)}
    edges = {"stem": nn.Linear(6, 8), "head": nn.Linear(8, 3)}
    return captured(forward, vector(), **{**edges, **branch, **layers})


def residual_mlp(bias: bool) -> CapturedGraph:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(x + net.down(F.gelu(net.up(net.norm(x)))))

    return beside_a_branch(forward, bias=bias, norm=nn.LayerNorm(8))


def test_of_a_residual_branch_the_last_bias_stays() -> None:
    graph = residual_mlp(bias=True)
    small = check_vanished(graph, emptied(graph, "up channels"))
    assert names_of(small) == {"stem.weight", "stem.bias", "down.bias", "head.weight", "head.bias"}
    assert operators(small) == ["linear", "view", "add", "linear"]


def test_of_a_branch_without_bias_nothing_stays() -> None:
    graph = residual_mlp(bias=False)
    small = check_vanished(graph, emptied(graph, "up channels"))
    assert names_of(small) == {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    assert operators(small) == ["linear", "linear"]


@pytest.mark.parametrize("gone", [("up",), ("up", "wider"), ("up", "wider", "again")])
def test_branches_in_a_row_go_one_by_one_or_together(gone: tuple[str, ...]) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        for up, down in ((net.up, net.down), (net.wider, net.narrower), (net.again, net.back)):
            x = x + down(F.gelu(up(x)))
        return net.head(x)

    ups, downs = ("up", "wider", "again"), ("down", "narrower", "back")
    layers = {name: nn.Linear(8, 6) for name in ups} | {name: nn.Linear(6, 8, bias=False) for name in downs}
    graph = captured(forward, vector(), stem=nn.Linear(6, 8), head=nn.Linear(8, 3), **layers)
    small = check_vanished(graph, emptied(graph, *(f"{name} channels" for name in gone)))
    assert operators(small).count("add") == 3 - len(gone)


def test_what_is_filled_up_with_ones_cannot_do_without_its_channels() -> None:
    """The ones are there still, and are no zeros."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(x + net.down(torch.constant_pad_nd(F.gelu(net.up(x)), (0, 1), 1.0)))

    layers = {"stem": nn.Linear(6, 8), "up": nn.Linear(8, 4), "down": nn.Linear(5, 8), "head": nn.Linear(8, 3)}
    graph = captured(forward, vector(), **layers)
    with pytest.raises(PlanError, match="constant_pad_nd cannot do without 'gelu'"):
        emptied(graph, "up channels")


def test_a_norm_by_means_goes_with_its_branch_though_surgery_would_have_scaled_it() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1)
        return net.head(x + net.down(F.gelu(net.up(normed))))

    graph = beside_a_branch(forward, bias=False)
    groups = find_groups(graph)
    plan = KeepPlan.from_kept(groups, {"up channels": [], "stem channels": [0, 3, 4]})
    assert operators(check_vanished(graph, plan)) == ["linear", "linear"]


def overwritten(x: Tensor) -> Tensor:
    """Written through a view, and looked at as a whole afterwards."""
    y = x.clone()
    y.narrow(-1, 1, 2).copy_(torch.tanh(x.narrow(-1, 0, 2)))
    return y


def written_before(net: Any, x: Tensor) -> Tensor:
    x = overwritten(net.stem(x))
    return net.head(x + net.down(F.gelu(net.up(x))))


def written_after(net: Any, x: Tensor) -> Tensor:
    x = net.stem(x)
    return net.head(overwritten(x + net.down(F.gelu(net.up(x)))))


def sum_written(net: Any, x: Tensor) -> Tensor:
    x = net.stem(x)
    y = x + net.down(F.gelu(net.up(x)))
    return net.head(y.relu_() - x)


def kept_written(net: Any, x: Tensor) -> Tensor:
    x = net.stem(x)
    y = x + net.down(F.gelu(net.up(x)))
    return net.head(x.relu_() - y)


def taken_away(net: Any, x: Tensor) -> Tensor:
    x = net.stem(x)
    return net.head(net.down(F.gelu(net.up(x))) - x)


@pytest.mark.parametrize("forward", [written_before, written_after, sum_written, kept_written, taken_away])
def test_what_is_written_in_place_beside_a_branch_that_goes_is_still_written(forward: Any) -> None:
    graph = beside_a_branch(forward, bias=False)
    check_vanished(graph, emptied(graph, "up channels"))


def test_a_branch_that_is_written_through_a_view_stays() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.down(F.gelu(net.up(x)))
        y.narrow(-1, 1, 2).copy_(torch.tanh(x.narrow(-1, 0, 2)))
        return net.head(x + y)

    graph = beside_a_branch(forward)
    with pytest.raises(PlanError, match="'copy_' writes in place through a view"):
        emptied(graph, "up channels")


def test_dropout_of_what_is_left_of_a_branch_is_left_out() -> None:
    graph = beside_a_branch(
        lambda net, x: net.head(net.stem(x) + net.drop(net.down(F.gelu(net.up(net.stem(x)))))), drop=nn.Dropout(0.5)
    )
    small = shrink(graph, emptied(graph, "up channels")).module()
    assert torch.equal(small.train()(vector().double()), small.eval()(vector().double()))


def residual_block(inplace: bool) -> CapturedGraph:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.norm2(net.conv2(F.relu(net.norm1(net.conv1(x)), inplace)))
        if inplace:
            y += x
        else:
            y = y + x
        return net.head(F.relu(y, inplace).mean((2, 3)))

    return captured(
        forward,
        image(),
        stem=nn.Conv2d(3, 8, 3),
        conv1=nn.Conv2d(8, 8, 3, padding=1, bias=False),
        norm1=nn.BatchNorm2d(8),
        conv2=nn.Conv2d(8, 8, 3, padding=1, bias=False),
        norm2=nn.BatchNorm2d(8),
        head=nn.Linear(8, 3),
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_of_a_residual_block_the_batch_norm_of_nothing_stays(inplace: bool) -> None:
    graph = residual_block(inplace)
    small = check_vanished(graph, emptied(graph, "conv1 channels"))
    assert not {name for name in names_of(small) if name.startswith(("conv1", "norm1", "conv2"))}
    assert {"norm2.weight", "norm2.bias", "norm2.running_mean", "norm2.running_var"} <= names_of(small)


def test_what_is_left_of_a_block_trains_as_one_constant_a_channel() -> None:
    graph = residual_block(inplace=True)
    small = shrink(graph, emptied(graph, "conv1 channels")).module().train()
    mean = small.get_buffer("norm2.running_mean").clone()
    small(image().double()).sum().backward()
    assert float(small.get_parameter("norm2.bias").grad.abs().sum()) > 0
    assert torch.equal(small.get_buffer("norm2.running_mean"), mean)


def test_an_attention_loses_all_heads() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in net.qkv(net.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return net.head(x + net.out(y))

    graph = captured(
        forward,
        tokens(),
        stem=nn.Linear(12, 8),
        norm=nn.LayerNorm(8),
        qkv=nn.Linear(8, 24),
        out=nn.Linear(8, 8),
        head=nn.Linear(8, 3),
    )
    groups = find_groups(graph)
    (heads,) = (f"{group.name} {group.kind}" for group in groups.groups if group.kind == "blocks")
    small = check_vanished(graph, emptied(graph, heads))
    assert names_of(small) == {"stem.weight", "stem.bias", "out.bias", "head.weight", "head.bias"}


def test_one_head_keeps_a_width_of_its_queries_as_long_as_it_has_values() -> None:
    """Without queries and keys it would attend to everything alike, which is not nothing."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(x + net.o(F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x))))

    layers = {name: nn.Linear(8, 8) for name in "qkvo"}
    graph = captured(forward, tokens(), stem=nn.Linear(12, 8), head=nn.Linear(8, 3), **layers)
    with pytest.raises(PlanError, match="scaled_dot_product_attention cannot do without"):
        emptied(graph, "q channels")
    check_vanished(graph, emptied(graph, "v channels"))


def test_a_joined_branch_leaves_its_bias_as_channels() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        a, b = F.relu(net.a(x)), F.relu(net.b2(F.relu(net.b1(x))))
        return net.head(torch.cat([a, b], 1).mean((2, 3)))

    graph = captured(
        forward,
        image(),
        a=nn.Conv2d(3, 4, 3),
        b1=nn.Conv2d(3, 4, 1),
        b2=nn.Conv2d(4, 5, 3),
        head=nn.Linear(9, 3),
    )
    small = check_vanished(graph, emptied(graph, "b1 channels"))
    assert "b2.bias" in names_of(small) and "b2.weight" not in names_of(small)


def test_a_joined_part_goes_without_a_trace() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.cat([F.relu(net.a(x)), F.relu(net.b(x))], 1))

    graph = captured(forward, vector(), a=nn.Linear(6, 4), b=nn.Linear(6, 5), head=nn.Linear(9, 3))
    small = check_vanished(graph, emptied(graph, "b channels"))
    assert "cat" not in operators(small)
    assert names_of(small) == {"a.weight", "a.bias", "head.weight", "head.bias"}


def test_a_squeeze_and_excitation_becomes_a_factor_a_channel() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        scale = torch.sigmoid(net.up(F.relu(net.down(x.mean((2, 3), keepdim=True)))))
        return net.head((x * scale).mean((2, 3)))

    graph = captured(
        forward,
        image(),
        stem=nn.Conv2d(3, 8, 3),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 8, 1),
        head=nn.Linear(8, 3),
    )
    small = check_vanished(graph, emptied(graph, "down channels"))
    assert "up.bias" in names_of(small) and "up.weight" not in names_of(small)


def test_sizes_that_were_read_off_a_vanished_tensor_come_from_the_input() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.down(F.relu(net.up(x)))
        return net.head(x.view(y.shape[0], 2, -1) + y.view(y.shape[0], 2, -1))

    graph = beside_a_branch(forward, head=nn.Linear(4, 3))
    check_vanished(graph, emptied(graph, "up channels"))


@pytest.mark.slow
def test_windows_of_a_constant_are_expanded() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)  # (batch, 4, 8)
        windows = x.view(-1, 2, 8)
        y = net.down(F.relu(net.up(windows)))
        return net.head(x + y.view(-1, 2, 2, 8).permute(0, 2, 1, 3).reshape(-1, 4, 8))

    graph = captured(
        forward,
        tokens(length=4),
        stem=nn.Linear(12, 8),
        up=nn.Linear(8, 5),
        down=nn.Linear(5, 8),
        head=nn.Linear(8, 3),
    )
    check_vanished(graph, emptied(graph, "up channels"))


def test_a_chain_keeps_one_channel_of_every_layer() -> None:
    graph = captured(lambda net, x: net.b(F.relu(net.a(x))), vector(), a=nn.Linear(6, 4), b=nn.Linear(4, 3))
    with pytest.raises(PlanError) as refusal:
        emptied(graph, "a channels")
    assert str(refusal.value) == (
        "this plan would leave 'a_weight' without any channel, and the output would no longer depend on the input. "
        "Nothing was changed. Keep at least one move of every group that cannot vanish."
    )


def two_ways() -> CapturedGraph:
    """From the input to the output over ``a`` and ``b``, and over ``c`` and ``d``."""
    return captured(
        lambda net, x: net.b(F.relu(net.a(x))) + net.d(F.relu(net.c(x))),
        vector(),
        a=nn.Linear(6, 4),
        b=nn.Linear(4, 3),
        c=nn.Linear(6, 5),
        d=nn.Linear(5, 3),
    )


def test_of_two_ways_to_the_output_one_has_to_stay() -> None:
    graph = two_ways()
    check_vanished(graph, emptied(graph, "a channels"))
    check_vanished(graph, emptied(graph, "c channels"))
    with pytest.raises(PlanError, match="would no longer depend on the input"):
        emptied(graph, "a channels", "c channels")


@pytest.mark.parametrize(
    ("build", "name"),
    [(lambda: residual_mlp(bias=True), "up channels"), (lambda: residual_block(inplace=True), "conv1 channels")],
)
def test_onnx_runtime_computes_what_is_left(build: Any, name: str, tmp_path: Path) -> None:
    graph = build().to(torch.float32)
    plan = emptied(graph, name)
    export_onnx(shrink(graph, plan), tmp_path / "small.onnx", reference=masked(graph, plan))


def test_a_model_file_keeps_what_is_left(tmp_path: Path) -> None:
    graph = residual_block(inplace=True)
    plan = emptied(graph, "conv1 channels")
    export_pt2(shrink(graph, plan), tmp_path / "small.pt2", reference=masked(graph, plan))


def test_a_shrunk_model_can_be_taken_apart_again() -> None:
    graph = residual_block(inplace=True)
    small = shrink(graph, emptied(graph, "conv1 channels"))
    groups = find_groups(small)
    assert {group.name for group in groups.groups} == {"stem"}
    assert worst_error(small, KeepPlan.random(groups, 0.5)) <= 1e-10


def test_the_smallest_network_is_the_stem_alone() -> None:
    groups = find_groups(residual_block(inplace=False))
    keep = smallest_keep(groups, torch.arange(groups.num_moves).double())
    kept = KeepPlan.from_keep(groups, keep).kept()
    assert kept == {"stem channels": [7], "conv1 channels": []}


def test_of_ways_that_cannot_all_go_the_worst_do() -> None:
    graph = two_ways()
    groups = find_groups(graph)
    kept = KeepPlan.from_keep(groups, smallest_keep(groups, torch.arange(groups.num_moves).double())).kept()
    assert kept == {"a channels": [], "a inputs": [], "c channels": [4], "c inputs": [5]}


def test_heads_with_layers_of_their_own_keep_widths_of_their_own() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        heads = [F.scaled_dot_product_attention(q(x), k(x), v(x)) for q, k, v in zip(net.q, net.k, net.v, strict=True)]
        return net.head(x + net.out(torch.cat(heads, -1)))

    graph = captured(
        forward,
        tokens(),
        stem=nn.Linear(12, 8),
        q=nn.ModuleList(nn.Linear(8, 4) for _ in range(3)),
        k=nn.ModuleList(nn.Linear(8, 4) for _ in range(3)),
        v=nn.ModuleList(nn.Linear(8, 4) for _ in range(3)),
        out=nn.Linear(12, 8),
        head=nn.Linear(8, 3),
    )
    groups = find_groups(graph)
    values = {"v.0 channels": [1], "v.1 channels": [0, 2, 3], "v.2 channels": []}
    small = check_vanished(graph, KeepPlan.from_kept(groups, {**values, "q.1 channels": [3]}))
    assert tuple(small.state()["out.weight"].shape) == (8, 4)
    assert not {name for name in names_of(small) if name.startswith(("q.2", "k.2", "v.2"))}
