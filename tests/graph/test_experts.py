"""Mixtures of experts, listed or stacked, dense or sparse: the experts' hidden units go, and what the router reads."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net, reasons, table
from proofs import assert_exact, assert_exports, assert_gateable, graph_of, prunable_share
from torch import Tensor, nn

from l0compress.graph import CapturedGraph, KeepPlan, cost, find_groups, masked, shrink
from l0compress.graph.nodes.network import op_name
from l0compress.verification.equality import verify

pytestmark = pytest.mark.slow


def tokens() -> Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


def weighted_sum(s: Any, x: Tensor) -> Tensor:
    weights = s.r(x).softmax(-1)
    return s.o((torch.stack([expert(x) for expert in s.e], -2) * weights.unsqueeze(-1)).sum(-2))


def chosen_by_mask(s: Any, x: Tensor) -> Tensor:
    weights, chosen = s.r(x).softmax(-1).topk(2, -1)
    shares = [((chosen == number) * weights).sum(-1, keepdim=True) for number in range(len(s.e))]
    return s.o(sum(share * expert(x) for share, expert in zip(shares, s.e, strict=True)))


def sent_to_experts(s: Any, x: Tensor) -> Tensor:
    h = s.a(x).flatten(0, 1)
    weights, chosen = s.r(h).softmax(-1).topk(2, -1)
    y = torch.zeros_like(h)
    for number, expert in enumerate(s.e):
        token, rank = torch.where(chosen == number)
        y.index_add_(0, token, expert(h[token]) * weights[token, rank, None])
    return s.o(y.view(x.shape[0], x.shape[1], -1))


def stacked_bmm(s: Any, x: Tensor) -> Tensor:
    weights = s.r(x).softmax(-1)
    hidden = F.gelu(torch.bmm(x.flatten(0, 1).expand(4, -1, -1), s.up))
    y = torch.bmm(hidden, s.down).view(4, *x.shape)
    return s.o((y * weights.movedim(-1, 0).unsqueeze(-1)).sum(0))


def stacked_matmul(s: Any, x: Tensor) -> Tensor:
    weights = s.r(x).softmax(-1)
    y = F.gelu(x.unsqueeze(-3) @ s.up) @ s.down
    return s.o((y * weights.transpose(-1, -2).unsqueeze(-1)).sum(-3))


def runs_of_tokens(s: Any, x: Tensor) -> Tensor:
    """As transformers does it: tokens sorted by expert, multiplied in runs, and put back."""
    h = s.a(x).flatten(0, 1)
    weight, expert = s.r(h).softmax(-1).max(-1)
    order = expert.argsort()
    ends = torch.stack([(expert <= number).sum() for number in range(4)]).to(torch.int32)
    hidden = F.gelu(torch.ops.transformers.grouped_mm_fallback(h[order], s.up, ends))
    y = torch.ops.transformers.grouped_mm_fallback(hidden, s.down, ends)
    return s.o((y[order.argsort()] * weight.unsqueeze(-1)).view(x.shape[0], x.shape[1], -1))


def listed(function: Callable[..., Any], **more: Any) -> nn.Module:
    experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8)) for _ in range(4))
    return Net(function, r=nn.Linear(8, 4), e=experts, o=nn.Linear(8, 3), **more)


def stacked(function: Callable[..., Any], **more: Any) -> nn.Module:
    up, down = nn.Parameter(torch.zeros(4, 8, 6)), nn.Parameter(torch.zeros(4, 6, 8))
    return Net(function, r=nn.Linear(8, 4), up=up, down=down, o=nn.Linear(8, 3), **more)


def in_runs() -> nn.Module:
    importlib.import_module("transformers.integrations.moe")  # it brings the operator; too late once a capture runs
    return stacked(runs_of_tokens, a=nn.Linear(8, 8))


LISTED = {f"e.{number}.0 channels": 6 for number in range(4)}
# The experts themselves (a softmax over them reads their scores), and the hidden units within them.
STACKED = {"up channels": 4, "up #2 channels": 6, "down channels": 8, "r inputs": 8}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "weighted sum": (lambda: listed(weighted_sum), {**LISTED, "r inputs": 8, "e.0.2 channels": 8}),
    "chosen by mask": (lambda: listed(chosen_by_mask), {**LISTED, "r inputs": 8, "e.0.2 channels": 8}),
    "sent to experts": (lambda: listed(sent_to_experts, a=nn.Linear(8, 8)), {**LISTED, "e.0.2 channels": 8}),
    "stacked, bmm": (lambda: stacked(stacked_bmm), STACKED),
    "stacked, matmul": (lambda: stacked(stacked_matmul), STACKED),
    "runs of tokens": (in_runs, {"a channels": 8, "up channels": 6}),
}


def transformer(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "use_cache": False, "max_position_embeddings": 32,
    }  # fmt: skip
    if name == "Mixtral":
        model: nn.Module = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=4))
    else:
        more: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20}
        config = transformers.Qwen2MoeConfig(**sizes, **more, num_experts_per_tok=2)
        model = transformers.Qwen2MoeForCausalLM(config)
    return model, {"input_ids": torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))}


def build(name: str) -> CapturedGraph:
    return graph_of(NETWORKS[name][0](), tokens())


@pytest.mark.parametrize("name", NETWORKS)
def test_hidden_units_of_experts_go(name: str) -> None:
    groups = assert_exact(build(name))
    assert NETWORKS[name][1].items() <= table(groups).items()
    assert prunable_share(groups) > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_stand_for_them(name: str) -> None:
    assert_gateable(build(name))


@pytest.mark.parametrize("name", ["weighted sum", "chosen by mask", "stacked, bmm", "runs of tokens"])
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    assert_exports(build(name), tmp_path)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2-MoE"])
def test_experts_of_transformers(name: str, tmp_path: Path) -> None:
    model, inputs = transformer(name)
    graph = graph_of(model, **inputs)
    groups = assert_exact(graph)
    assert table(groups)["model.layers.0.mlp.experts channels"] == 24
    assert prunable_share(groups) > 0.7
    assert_gateable(graph)
    assert_exports(graph, tmp_path)


def test_runs_of_tokens_cost_one_expert_a_token() -> None:
    graph = build("runs of tokens")
    linear = 5 * (8 * 8 + 8 * 4 + 8 * 3)
    assert cost(graph).macs == linear + 5 * 2 * 8 * 6


def test_what_experts_are_sent_is_not_counted() -> None:
    assert cost(build("sent to experts")).macs == 5 * (8 * 8 + 8 * 4 + 8 * 3)


def test_whole_experts_stay() -> None:
    groups = find_groups(build("runs of tokens"))
    assert reasons(groups, "up") == [(0, "transformers::grouped_mm_fallback", "its experts are chosen at run time")]
    assert any(op_name(node) == "transformers::grouped_mm_fallback" for node in groups.graph.nodes())


def test_a_mask_over_channels_keeps_them() -> None:
    graph = graph_of(
        Net(lambda s, x: s.o(x) + F.gelu(s.a(x))[s.a(x) > 0].sum(), a=nn.Linear(8, 6), o=nn.Linear(8, 3)), tokens()
    )
    groups = find_groups(graph)
    assert (0, "index", "the size of the result depends on the data") in reasons(groups, "a.weight")


def test_pytorch_s_own_operator_keeps_its_widths() -> None:
    """It computes in bfloat16 alone, and on widths of whole 16 bytes."""

    def products(s: Any, x: Tensor) -> Tensor:
        ends = torch.tensor([2, 7, 9, 15], dtype=torch.int32)
        hidden = F.gelu(torch.ops.aten._grouped_mm.default(s.b(F.gelu(s.a(x))).flatten(0, 1), s.up, ends))
        return s.o(torch.ops.aten._grouped_mm.default(hidden, s.down, ends).mean(0))

    up, down = nn.Parameter(torch.zeros(4, 16, 24)), nn.Parameter(torch.zeros(4, 24, 16))
    model = Net(products, a=nn.Linear(8, 12), b=nn.Linear(12, 16), up=up, down=down, o=nn.Linear(16, 3))
    graph = graph_of(model.bfloat16(), tokens().bfloat16(), dynamic=None)
    groups = find_groups(graph)
    assert table(groups) == {"a channels": 12, "a inputs": 8}
    assert (2, "_grouped_mm", "its kernel accepts only widths that are multiples of 16 bytes") in reasons(groups, "up")
    assert cost(graph).macs == round((15 * (8 * 12 + 12 * 16) + 2 * 15 * 16 * 24 + 16 * 3) / 3)
    plan = KeepPlan.random(groups, 0.5)
    assert cost(shrink(graph, plan)) == plan.cost
    verify(shrink(graph, plan), masked(graph, plan))
