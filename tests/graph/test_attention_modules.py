"""PyTorch's own attention modules: their heads, widths and hidden units go, and they train as the user's do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from networks import Net, table
from proofs import assert_exact, assert_exports, assert_gateable, graph_of, prunable_share
from torch import Tensor, nn

from l0compress.graph import CapturedGraph, KeepPlan, capture, find_groups, shrink
from l0compress.graph.nodes.network import op_name

# Attention that returns its weights drops out by hand, which tests/graph/test_training_mode.py is about.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::l0compress.errors.LostInCaptureWarning")]

PADDING = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
CAUSAL = torch.full((5, 5), float("-inf")).triu(1)


def tokens() -> Tensor:
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def attention(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(16, 4, **{"batch_first": True, "dropout": 0.1, **options})


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 24, batch_first=True), 1)


def to_itself(s: Any, x: Tensor) -> Tensor:
    return s.o(s.m(x, x, x, need_weights=False)[0])


def time_first(s: Any, x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    return s.o(s.m(x, x, x)[0].mean(0))


def with_weights(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, weights = s.m(x, x, x)
    return s.o(y), weights


def with_mask(s: Any, x: Tensor) -> Tensor:
    return s.o(s.m(x, x, x, attn_mask=s.mask, need_weights=False, is_causal=True)[0])


def across(s: Any, x: Tensor) -> Tensor:
    keys = s.c(x).flip(1)
    return s.o(s.m(x, keys, keys + 1, need_weights=False)[0])


def padded(s: Any, x: Tensor, padding: Tensor) -> Tensor:
    return s.o(s.m(x, x, x, key_padding_mask=padding, need_weights=False)[0])


def encoded(s: Any, x: Tensor) -> Tensor:
    return s.o(s.m(x))


def encoded_padded(s: Any, x: Tensor, padding: Tensor) -> Tensor:
    return s.o(s.m(x, src_key_padding_mask=padding))


def decoded(s: Any, x: Tensor) -> Tensor:
    return s.o(s.m(x, x * 2, tgt_mask=s.mask, tgt_is_causal=True))


def net(function: Callable[..., Any], module: nn.Module, **more: Any) -> Callable[[], nn.Module]:
    return lambda: Net(function, m=module, o=nn.Linear(16, 3), **more)


OWN = {"m blocks": 4, "m width": 4, "m inputs": 16, "m.out_proj channels": 16}


def layers(prefix: str, count: int) -> dict[str, int]:
    one = {"self_attn blocks": 4, "self_attn width": 4, "linear1 channels": 24}
    return {f"{prefix}.{number}.{name}": size for number in range(count) for name, size in one.items()}


# The network, its inputs beside the tokens, and the groups that it must at least have.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], dict[str, int]]] = {
    "attention": (net(to_itself, attention()), (), OWN),
    "without biases": (net(to_itself, attention(bias=False)), (), OWN),
    "time first": (net(time_first, attention(batch_first=False)), (), OWN),
    "key padding": (net(padded, attention()), (PADDING,), OWN),
    "causal mask": (net(with_mask, attention(), mask=CAUSAL), (), OWN),
    "other keys": (net(across, attention(kdim=10, vdim=10), c=nn.Linear(16, 10)), (), {"m blocks": 4, "m #2 width": 4}),
    "added keys": (net(to_itself, attention(add_bias_kv=True, add_zero_attn=True)), (), {"m width": 4}),
    "average weights returned": (net(with_weights, attention()), (), {"m width": 4}),
    "encoder": (net(encoded, encoder()), (), layers("m.layers", 2)),
    "encoder, norm first": (
        net(encoded_padded, encoder(norm_first=True, activation="gelu")),
        (PADDING,),
        layers("m.layers", 2),
    ),
    "decoder": (
        net(decoded, decoder(), mask=CAUSAL),
        (),
        {**layers("m.layers", 1), "m.layers.0.multihead_attn blocks": 4, "m.layers.0.multihead_attn width": 4},
    ),
    "transformer": (
        net(lambda s, x: s.o(s.m(x, x * 2)), nn.Transformer(16, 4, 1, 1, 24, batch_first=True)),
        (),
        {**layers("m.encoder.layers", 1), **layers("m.decoder.layers", 1)},
    ),
}


def build(name: str) -> CapturedGraph:
    make, more, _ = NETWORKS[name]
    return graph_of(make(), tokens(), *more)


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_and_widths_and_hidden_units_go(name: str) -> None:
    groups = assert_exact(build(name))
    assert NETWORKS[name][2].items() <= table(groups).items()
    assert prunable_share(groups) > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_stand_for_them(name: str) -> None:
    assert_gateable(build(name))


@pytest.mark.parametrize("name", ["time first", "key padding", "average weights returned", "encoder", "decoder"])
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    assert_exports(build(name), tmp_path)


def test_heads_go_from_under_their_average_which_keeps_the_dense_count() -> None:
    assert table(find_groups(build("average weights returned")))["m blocks"] == 4


@pytest.mark.parametrize("name", ["attention", "key padding", "encoder", "encoder, norm first"])
def test_no_operator_stands_for_a_whole_layer(name: str) -> None:
    """Without gradients, PyTorch would run its fused operators, which neither train nor show their heads."""
    make, more, groups = NETWORKS[name]
    with torch.no_grad():
        graph = capture(models.randomise(make()), (tokens(), *more))
    assert not [
        node for node in graph.nodes() if "transformer_encoder" in op_name(node) or "multi_head" in op_name(node)
    ]
    assert groups.items() <= table(find_groups(graph)).items()


def dropout_of(graph: CapturedGraph, *, training: bool) -> list[float]:
    network = graph.module().train(training)
    nodes = [node for node in network.graph.nodes if op_name(node) == "scaled_dot_product_attention"]
    return [node.kwargs.get("dropout_p", 0.0) for node in nodes]


def test_attention_drops_out_in_training_as_the_user_s_module_does() -> None:
    graph = capture(nn.Sequential(encoder(dropout=0.25), encoder(dropout=0.0)), (tokens(),))
    small = shrink(graph, KeepPlan.random(find_groups(graph)))
    for found in (graph, small, graph.to(torch.float64), graph.with_state(graph.state())):
        assert dropout_of(found, training=True) == [0.25, 0.25, 0.0, 0.0]
        assert dropout_of(found, training=False) == [0.0] * 4


def test_finding_the_dropout_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv1d(5, 5, 1), nn.BatchNorm1d(5), encoder()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    graph = capture(model, (tokens(),))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert dropout_of(graph, training=True) == [0.1, 0.1]


def test_a_model_that_cannot_run_in_training_mode_keeps_what_was_captured() -> None:
    class Untrained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = encoder()

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise NotImplementedError
            return self.inner(x)

    assert dropout_of(capture(Untrained(), (tokens(),)), training=True) == [0.0, 0.0]
