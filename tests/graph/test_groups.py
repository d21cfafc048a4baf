"""Which channels go together, and which stay for which reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Net, captured, grouped, image, reasons, table, tokens, vector
from torch import Tensor, nn

from l0compress.errors import NothingToPruneError
from l0compress.graph import capture, find_groups

BY_POSITION = "picks positions of it that a smaller tensor does not have"
BY_NEIGHBOURS = "it is padded by values that depend on its neighbours"


def conv(width_in: int, width: int, kernel: int = 1, conv_groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, kernel, padding=kernel // 2, groups=conv_groups)


def test_the_inputs_of_a_first_linear_can_go_one_by_one() -> None:
    groups = grouped(lambda s, x: s.b(F.relu(s.a(x))), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert table(groups) == {"a channels": 8, "a inputs": 6}
    assert groups.groups[0].where == ("a.weight:0", "a.bias:0", "b.weight:1")
    assert groups.groups[1].where == ("a.weight:1",)
    assert groups.moves[9].label == "a inputs[1]"


def test_the_inputs_of_a_first_convolution_stay() -> None:
    groups = grouped(lambda s, x: s.b(F.relu(s.a(x))), image(), a=conv(3, 8), b=conv(8, 4))
    assert table(groups) == {"a channels": 8}
    assert reasons(groups, "a.weight") == [(1, "conv2d", "it reads the model's input")]


def test_a_residual_sum_unites_what_it_adds() -> None:
    groups = grouped(
        lambda s, x: s.c((h := s.a(x)) + s.b(F.relu(h))), image(), a=conv(3, 8), b=conv(8, 8, 3), c=conv(8, 4)
    )
    assert table(groups) == {"a channels": 8}
    assert groups.groups[0].where == ("a.weight:0", "a.bias:0", "b.weight:0", "b.weight:1", "b.bias:0", "c.weight:1")


def test_a_concatenation_keeps_its_parts_apart() -> None:
    groups = grouped(
        lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)), image(), a=conv(3, 8), b=conv(3, 5), c=conv(13, 4)
    )
    assert table(groups) == {"a channels": 8, "b channels": 5}


def test_a_grouped_convolution_loses_whole_groups_or_the_same_channels_of_each() -> None:
    groups = grouped(lambda s, x: s.c(F.relu(s.b(s.a(x)))), image(), a=conv(3, 12), b=conv(12, 8, 3, 4), c=conv(8, 4))
    assert table(groups) == {"a blocks": 4, "a width": 3, "b width": 2}
    assert groups.groups[0].where == ("a.weight:0", "a.bias:0", "b.weight:0", "b.bias:0", "c.weight:1")


def test_a_grouped_convolution_over_a_whole_input_loses_the_same_channels_of_each_group() -> None:
    groups = grouped(lambda s, x: s.c(F.relu(s.b(x))), image(4), b=conv(4, 10, 3, 2), c=conv(10, 4))
    assert table(groups) == {"b channels": 5}
    assert groups.groups[0].where == ("b.weight:0", "b.bias:0", "c.weight:1")


def test_a_depthwise_convolution_follows_its_channels() -> None:
    groups = grouped(lambda s, x: s.c(s.b(F.relu(s.a(x)))), image(), a=conv(3, 8), b=conv(8, 8, 3, 8), c=conv(8, 4))
    assert table(groups) == {"a channels": 8}


def attention(s: nn.Module, x: Tensor, **options: bool) -> Tensor:
    """Four query heads; as many key and value heads as their layers are wide."""
    query, key, value = (
        layer(x).unflatten(-1, (-1, width)).transpose(1, 2) for layer, width in ((s.q, 4), (s.k, 4), (s.v, 6))
    )
    return s.o(F.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2).flatten(2))


def test_attention_loses_heads_and_widths_of_queries_and_of_values() -> None:
    groups = grouped(
        attention, tokens(), q=nn.Linear(12, 16), k=nn.Linear(12, 16), v=nn.Linear(12, 24), o=nn.Linear(24, 3)
    )
    assert {name: size for name, size in table(groups).items() if "inputs" not in name} == {
        "q blocks": 4,
        "q width": 4,
        "v width": 6,
    }
    heads = next(group for group in groups.groups if group.kind == "blocks")
    assert heads.where == (
        *("q.weight:0", "q.bias:0", "k.weight:0", "k.bias:0", "v.weight:0", "v.bias:0"),
        "o.weight:1",
    )


def test_query_heads_that_share_a_key_head_go_with_it() -> None:
    groups = grouped(
        lambda s, x: attention(s, x, enable_gqa=True),
        tokens(),
        q=nn.Linear(12, 16),
        k=nn.Linear(12, 8),
        v=nn.Linear(12, 12),
        o=nn.Linear(24, 3),
    )
    kinds = {name: size for name, size in table(groups).items() if "inputs" not in name}
    assert sorted(kinds.values()) == [2, 4, 6]
    assert [len(group.moves) for group in groups.groups if group.kind == "blocks"] == [2]


def test_heads_that_share_one_key_and_value_go_by_themselves() -> None:
    def attention(s: nn.Module, x: Tensor) -> Tensor:
        q = s.q(x).unflatten(-1, (4, 3)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, s.k(x).unsqueeze(1), s.v(x).unsqueeze(1))
        return s.o(mixed.transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(12, 12), "k": nn.Linear(12, 3), "v": nn.Linear(12, 3)}
    groups = grouped(attention, tokens(), **layers, o=nn.Linear(12, 2))
    assert table(groups) == {
        "q blocks": 4,
        "q width": 3,
        "v width": 3,
        "q inputs": 12,
        "k inputs": 12,
        "v inputs": 12,
    }


def test_heads_go_where_a_table_of_positions_by_width_keeps_the_width() -> None:
    def attention(s: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 3)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        angles = torch.arange(15.0).view(5, 3).cos()
        mixed = F.scaled_dot_product_attention(q * angles, k * angles, v)
        return s.o(mixed.transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(12, 12) for name in "qkv"}
    groups = grouped(attention, tokens(), **layers, o=nn.Linear(12, 3))
    assert table(groups) == {"q blocks": 4, "v width": 3, "q inputs": 12, "k inputs": 12, "v inputs": 12}


def test_linear_attention_loses_whole_heads() -> None:
    def linear_attention(s: nn.Module, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.o((query @ (key.transpose(-1, -2) @ value)).transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(12, 16), "k": nn.Linear(12, 16), "v": nn.Linear(12, 24), "o": nn.Linear(24, 3)}
    assert "q blocks" in table(grouped(linear_attention, tokens(), **layers))


def test_rotary_embeddings_pair_the_halves_of_every_head() -> None:
    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + torch.cat([-x[..., 3:], x[..., :3]], -1) * sin

    def rotary(s: nn.Module, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (4, 6)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        cos, sin = torch.cat([s.cos, s.cos], -1), torch.cat([s.sin, s.sin], -1)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        return s.o(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(12, 24) for name in "qkv"}
    groups = grouped(rotary, tokens(), **layers, o=nn.Linear(24, 3), cos=torch.rand(5, 3), sin=torch.rand(5, 3))
    assert {name: size for name, size in table(groups).items() if "inputs" not in name} == {
        "q blocks": 4,
        "q width": 3,
        "v width": 6,
    }


def test_a_sorting_over_the_width_of_heads_keeps_the_width_and_lets_heads_go() -> None:
    def sorted_heads(s: nn.Module, x: Tensor) -> Tensor:
        return s.o(s.v(x).unflatten(-1, (3, 4)).sort(-1)[0].flatten(-2))

    groups = grouped(sorted_heads, tokens(), v=nn.Linear(12, 12), o=nn.Linear(12, 3))
    assert {name: size for name, size in table(groups).items() if "inputs" not in name} == {"v blocks": 3}


def heads_apart(s: nn.Module, x: Tensor) -> Tensor:
    """Attention that is written head by head, so that no view forces their widths to be alike."""
    parts = (layer(x).chunk(3, -1) for layer in (s.q, s.k, s.v))
    return s.o(torch.cat([torch.softmax(q @ k.mT, -1) @ v for q, k, v in zip(*parts, strict=True)], -1))


def test_heads_apart_keep_widths_of_their_own() -> None:
    layers = {name: nn.Linear(12, 12) for name in "qkv"}
    groups = grouped(heads_apart, tokens(), **layers, o=nn.Linear(12, 3))
    assert {name: size for name, size in table(groups).items() if "inputs" not in name} == {
        f"{name} channels": 4 for name in ("q", "q #2", "q #3", "v", "v #2", "v #3")
    }


def test_a_channel_shuffle_keeps_every_channel_free() -> None:
    def shuffled(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x)
        return s.b(h.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(h.shape))

    assert table(grouped(shuffled, image(), a=conv(3, 8), b=conv(8, 4))) == {"a channels": 8}


def test_a_shuffle_that_also_moves_positions_stays_a_rectangle() -> None:
    def shuffled(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x)
        return s.b(h.view(-1, 2, 4, 8, 8).permute(0, 2, 1, 4, 3).reshape(h.shape))

    assert table(grouped(shuffled, image(), a=conv(3, 8), b=conv(8, 4))) == {"a blocks": 2, "a width": 4}


def test_one_shuffle_that_stays_a_rectangle_does_not_bind_another() -> None:
    def shuffled(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x)
        h = s.b(h.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(h.shape))
        return s.c(h.view(-1, 2, 4, 8, 8).permute(0, 2, 1, 4, 3).reshape(h.shape))

    groups = grouped(shuffled, image(), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4))
    assert table(groups) == {"a channels": 8, "b blocks": 2, "b width": 4}


def test_what_dies_with_its_reader_needs_no_gate_there() -> None:
    groups = grouped(lambda s, x: s.b(s.d(s.a(x))), image(), a=conv(3, 8), d=conv(8, 8, 3, 8), b=conv(8, 4))
    assert [read.parameter for read in groups.reads] == ["b.weight"]


def test_a_gate_written_by_hand_unites_the_halves() -> None:
    def gated(s: nn.Module, x: Tensor) -> Tensor:
        value, gate = s.a(x).chunk(2, -1)
        return s.b(value * torch.sigmoid(gate))

    groups = grouped(gated, tokens(), a=nn.Linear(12, 16), b=nn.Linear(8, 3))
    assert table(groups) == {"a channels": 8, "a inputs": 12}


def test_squeeze_and_excite_follows_its_channels_and_frees_its_bottleneck() -> None:
    def squeezed(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x)
        return s.b(h * torch.sigmoid(s.up(F.relu(s.down(h.mean((2, 3), keepdim=True))))))

    groups = grouped(squeezed, image(), a=conv(3, 8), down=conv(8, 3), up=conv(3, 8), b=conv(8, 4))
    assert table(groups) == {"a channels": 8, "down channels": 3}


def test_a_tied_embedding_is_cut_where_both_its_uses_are() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    groups = grouped(
        lambda s, t: F.linear(s.p(F.gelu(s.e(t))), s.e.weight), ids, e=nn.Embedding(9, 4), p=nn.Linear(4, 4)
    )
    assert table(groups) == {"p channels": 4}
    assert "e.weight:1" in groups.groups[0].where
    assert reasons(groups, "e.weight") == [(0, "embedding", "its rows are chosen by index at run time")]


def test_a_layer_that_is_used_twice_is_cut_once() -> None:
    groups = grouped(
        lambda s, x: s.b(s.m(F.gelu(s.m(F.gelu(s.a(x)))))),
        vector(),
        a=nn.Linear(6, 8),
        m=nn.Linear(8, 8),
        b=nn.Linear(8, 3),
    )
    assert table(groups) == {"a channels": 8, "a inputs": 6}


@pytest.mark.parametrize(
    ("mix", "op", "reason"),
    [
        (lambda h: h.sort(-1)[0], "sort", "sort is taken over it"),
        (lambda h: h - h.max(-1, keepdim=True)[0], "max", "max is taken over it"),
        (lambda h: h - h.median(-1, keepdim=True)[0], "median", "median is taken over it"),
        (lambda h: h / h.norm(-1, -1, True), "linalg_vector_norm", "linalg_vector_norm is taken over it"),
        (lambda h: torch.fft.fft(h).real, "fft_fft", "no rule for aten.fft_fft.default"),
        (lambda h: h.cumsum(-1), "cumsum", "cumsum is taken over it"),
        (lambda h: h.unfold(1, 1, 1).squeeze(-1), "unfold", f"unfold {BY_POSITION}"),
        (lambda h: h.roll(1), "roll", f"roll {BY_POSITION}"),
        (lambda h: F.pad(h[:, None], (1, 0), mode="circular")[:, 0, 1:], "pad", BY_NEIGHBOURS),
    ],
)
def test_what_mixes_channels_freezes_them(mix: Callable[[Tensor], Tensor], op: str, reason: str) -> None:
    groups = grouped(lambda s, x: s.b(mix(s.a(x))), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert table(groups) == {"a inputs": 6}
    assert reasons(groups, "a.weight") == [(0, op, reason)]


def test_a_frozen_place_says_which_line_of_the_model_is_the_reason() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            hidden = hidden.cumsum(-1)
            return self.b(hidden)

    place = find_groups(capture(Normed(), (vector(),))).frozen[0]
    assert (place.where, place.dim, place.channels) == ("a.weight", 0, 8)
    assert place.source == f"test_groups.py:{Normed.forward.__code__.co_firstlineno + 2}"


def test_what_meets_a_frozen_tensor_says_what_froze_that_one() -> None:
    """Through another meeting and an activation, down to the operator that is the reason."""

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        stopped = s.c(x).cumsum(-1)
        return s.b(s.a(x).relu() + torch.tanh(s.d(x) + stopped))

    line = forward.__code__.co_firstlineno + 1
    groups = grouped(forward, vector(), **{name: nn.Linear(6, 8) for name in "acd"}, b=nn.Linear(8, 3))
    why = (
        "the tensor that it is combined with here stays whole, "
        f"since at cumsum (test_groups.py:{line}) cumsum is taken over it"
    )
    assert reasons(groups, "a.weight") == [(0, "add", why)]
    assert reasons(groups, "d.weight") == [(0, "add", why)]


def test_what_meets_the_input_says_so() -> None:
    groups = grouped(lambda s, x: s.b(s.a(x) * x.cos()), vector(), a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    why = "the tensor that it is combined with here stays whole: it comes from the input args_0"
    assert reasons(groups, "a.weight") == [(0, "mul", why)]


def test_a_weight_is_what_reads_rather_than_the_activation() -> None:
    groups = grouped(lambda s, x: s.b(s.a(x)), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert [(read.parameter, read.arg) for read in groups.reads] == [("a.weight", 1), ("b.weight", 1)]


def test_only_a_linear_layer_picks_features_of_the_input() -> None:
    groups = grouped(
        lambda s, x: s.b(torch.tanh(x @ s.w)), vector(), w=nn.Parameter(torch.zeros(6, 8)), b=nn.Linear(8, 3)
    )
    assert table(groups) == {"w channels": 8}


def test_ones_follow_the_channels_that_they_meet() -> None:
    groups = grouped(lambda s, x: s.b(s.a(x) * x.new_ones(8)), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert table(groups) == {"a channels": 8, "a inputs": 6}


def test_the_model_s_output_stays() -> None:
    groups = grouped(lambda s, x: s.b(s.a(x)), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert reasons(groups, "b.weight") == [(0, "linear", "it is part of the model's output")]


def test_a_channel_that_is_looked_at_by_itself_stays() -> None:
    groups = grouped(lambda s, x: s.b((h := s.a(x)) * h[:, 3:4]), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert table(groups) == {"a channels": 7, "a inputs": 6}
    assert reasons(groups, "a.weight") == [(0, "slice", "a single channel of it is picked out here")]


def test_what_is_written_through_a_view_stays() -> None:
    def written(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x) * 2
        h.reshape(-1, 2, 4)[:, 0].zero_()
        return s.b(h)

    groups = grouped(written, vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert table(groups) == {"a inputs": 6}
    assert reasons(groups, "a.weight")[0][2] == "it is written in place and seen through another view"


def test_in_place_activations_do_not_freeze_anything() -> None:
    groups = grouped(
        lambda s, x: s.b(s.a(x).relu_().view(-1, 2, 4).mul_(2).flatten(1)),
        vector(),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 3),
    )
    assert table(groups) == {"a blocks": 2, "a width": 4, "a inputs": 6}


def test_a_table_that_is_cut_to_the_sequence_at_run_time_keeps_its_rows() -> None:
    net = Net(
        lambda s, t: s.b(s.e(t) + s.p[: t.shape[1]]),
        e=nn.Embedding(9, 4),
        p=nn.Parameter(torch.randn(12, 4)),
        b=nn.Linear(4, 3),
    )
    ids = torch.zeros(2, 5, dtype=torch.long)
    assert table(find_groups(capture(net, (ids,), dynamic="batch"))) == {"p channels": 7, "p #2 channels": 4}
    assert table(find_groups(capture(net, (ids,)))) == {"p channels": 4}


def test_a_tensor_sized_by_the_data_freezes_what_it_came_from() -> None:
    groups = grouped(lambda s, x: s.b(s.a(x)[x[:, 0] > 0]).sum(0), vector(), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert reasons(groups, "a.weight") == [(0, "index", "the size of the result depends on the data")]


def test_a_model_without_anything_to_prune_says_why() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        return F.layer_norm(x, (8, 8)) + s.g

    line = forward.__code__.co_firstlineno + 1
    graph = captured(forward, image(), g=nn.Parameter(torch.ones(3, 1, 1)))
    with pytest.raises(NothingToPruneError) as caught:
        find_groups(graph)
    assert str(caught.value) == (
        "no channel of this model can be removed. Nothing was changed. What stays whole, and why: add: the tensor "
        f"that it is combined with here stays whole: it comes from the input args_0 (test_groups.py:{line}; 1 "
        "dimension, 3 parameters). A model needs at least one layer between its input and its output whose width only "
        "other layers see."
    )
