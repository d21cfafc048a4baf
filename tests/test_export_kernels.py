"""What ONNX Runtime need not compute is not in the file, and what is left computes the same at every size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from l0compress.export.onnx import export_onnx
from l0compress.export.ranges import simplify_known_
from l0compress.export.reshaping import constant_shape
from l0compress.export.session import OnnxSession
from l0compress.graph import capture
from l0compress.graph.nodes.network import op_name


class Heads(nn.Module):
    """Self-attention of two heads; ``attend`` gets queries, keys and values."""

    def __init__(self, kv_heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.k, self.v = nn.Linear(8, 4 * kv_heads), nn.Linear(8, 4 * kv_heads)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, _ = tokens.shape
        q, k, v = (layer(tokens).view(batch, length, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (self.attend(q, k, v) if mask is None else self.masked(q, k, v, mask)).transpose(1, 2)
        return self.out(mixed.reshape(batch, length, 8))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v)

    def masked(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, mask)


class Causal(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


class Grouped(Heads):
    def __init__(self) -> None:
        super().__init__(kv_heads=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, enable_gqa=True)


class FromPosition(Heads):
    """A mask that the model makes itself: it hides keys before a position; none before the first."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = torch.arange(k.shape[2])[None, None, None] >= self.first
        return scaled_dot_product_attention(q, k, v, seen.expand(q.shape[0], 1, q.shape[2], -1))


class Typed(nn.Module):
    """Tokens that all have one type, as Hugging Face's models assume where no types are given."""

    def __init__(self, type_id: int, added_to: str = "all tokens") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.types, self.added_to = nn.Embedding(9, 4), nn.Embedding(3, 4), added_to
        self.register_buffer("ids", torch.full((1, 50), type_id))
        self.ids: Tensor

    def forward(self, x: Tensor) -> Tensor:
        types = self.types(self.ids[:, : x.shape[1]].expand(x.shape))
        if self.added_to == "nothing":
            return types * 2
        return types + self.tokens(x if self.added_to == "all tokens" else x[:, :1])


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("model", [Heads(), Causal(), Grouped()], ids=["plain", "causal", "grouped"])
def test_attention_computes_the_same_at_every_batch_and_length(model, tmp_path):
    path = export_onnx(capture(model.eval(), (torch.randn(2, 5, 8),)), tmp_path / "model.onnx").path
    session = OnnxSession(path)
    for sizes in ((1, 1, 8), (3, 7, 8)):
        tokens = torch.randn(sizes)
        (found,) = session(tokens).values()
        torch.testing.assert_close(found, model(tokens).detach(), atol=1e-5, rtol=1e-4)


class HeadsOfWidthOne(nn.Module):
    """A head is put beside the next without a copy, so that what views both has the layout that attention left."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList([nn.Linear(4, 3) for _ in range(3)])
        self.weight = nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        heads = [layer(tokens).view(batch, length, 3, 1).transpose(1, 2) for layer in self.qkv]
        mixed = scaled_dot_product_attention(*heads).reshape(batch, -1, length, 1).transpose(1, 2)
        return (mixed.reshape(batch, length, -1).view(-1, 3) @ self.weight).view(batch, length, 2)


def test_heads_of_width_one_are_viewed_side_by_side(tmp_path):
    graph = capture(HeadsOfWidthOne(), (torch.randn(2, 5, 4),))
    assert export_onnx(graph, tmp_path / "model.onnx").equality.max_relative < 1e-5


def test_attention_takes_no_kernels_for_shapes(tmp_path):
    path = export_onnx(capture(Heads().eval(), (torch.randn(2, 5, 8),)), tmp_path / "model.onnx").path
    kernels = operators(path)
    assert kernels == {"MatMul": 6, "Add": 4, "Reshape": 4, "Transpose": 4, "Mul": 1, "Softmax": 1}


def test_a_row_that_a_mask_hides_from_everything_is_zero_as_in_pytorch(tmp_path):
    model = Heads().eval()
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    mask[:, :, 3] = False
    tokens = torch.randn(2, 5, 8)
    path = export_onnx(capture(model, (tokens, mask)), tmp_path / "model.onnx").path
    (found,) = OnnxSession(path)(tokens, mask).values()
    torch.testing.assert_close(found, model(tokens, mask).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, 3], model.out.bias.detach().expand(2, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("first", "has_mask"), [(0, False), (1, True)])
def test_only_a_mask_that_hides_nothing_is_dropped(first, has_mask, tmp_path):
    model, tokens = FromPosition(first).eval(), torch.randn(2, 5, 8)
    graph = capture(model, (tokens,))
    network = graph.module()
    simplify_known_(network)
    (attention,) = (node for node in network.graph.nodes if op_name(node) == "scaled_dot_product_attention")
    assert (len(attention.args) > 3) == has_mask
    (found,) = OnnxSession(export_onnx(graph, tmp_path / "model.onnx").path)(tokens).values()
    torch.testing.assert_close(found, model(tokens).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.mostly_slow
@pytest.mark.parametrize(("added_to", "lookups"), [("all tokens", 1), ("the first token", 2), ("nothing", 1)])
def test_a_row_that_every_position_looks_up_is_a_constant_if_nothing_needs_its_shape(added_to, lookups, tmp_path):
    model, tokens = Typed(2, added_to).eval(), torch.randint(9, (2, 5))
    path = export_onnx(capture(model, (tokens,)), tmp_path / "model.onnx").path
    tables = [
        node.input[0] for node in onnx.load(path).graph.node if node.op_type == "Gather" and "weight" in node.input[0]
    ]
    assert len(tables) == lookups and ("types.weight" in tables) == (added_to != "all tokens")
    (found,) = OnnxSession(path)(tokens).values()
    torch.testing.assert_close(found, model(tokens).detach())


def test_types_that_differ_are_looked_up(tmp_path):
    model, tokens = Typed(2).eval(), torch.randint(9, (2, 5))
    model.ids[0, 3] = 1
    (found,) = OnnxSession(export_onnx(capture(model, (tokens,)), tmp_path / "m.onnx").path)(tokens).values()
    torch.testing.assert_close(found, model(tokens).detach())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (("batch", "length", 12), ("batch", "length", 3, 4), [0, 0, 3, 4]),
        (("batch", 3, "length", 4), ("batch", "length", 12), [0, -1, 12]),
        (("batch", 6), (6, "batch"), [6, -1]),
        (("batch*length", 12), ("batch", "length", 12), None),
        (("batch", 0, 4), ("batch", 0, 2, 2), None),
    ],
)
def test_a_shape_is_a_constant_where_names_of_sizes_tell_it(before, after, expected):
    assert constant_shape(before, after) == expected
