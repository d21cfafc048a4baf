"""Gates in a network: against the masked dense model, and against the network before folding or compaction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from l0compress.errors import NothingToPruneError
from l0compress.gates.attach import GatedNetwork, attach, compact, fold, gate, product_of
from l0compress.gates.hard_concrete import HardConcrete
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import find_groups

SHUT, OPEN = -40.0, 40.0


class Attention(nn.Module):
    """Two layers of pre-norm self-attention and GELU, width 16, 4 heads; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict(self._block()) for _ in range(2)])
        self.head = nn.Linear(16, 3)

    def _block(self) -> dict[str, nn.Module]:
        return {"norm": nn.LayerNorm(16), "qkv": nn.Linear(16, 48), "out": nn.Linear(16, 16), "up": nn.Linear(16, 24),
                "down": nn.Linear(24, 16)}  # fmt: skip

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            h = block["norm"](x)
            q, k, v = (part.view(*x.shape[:2], 4, 4).transpose(1, 2) for part in block["qkv"](h).chunk(3, -1))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + block["out"](mixed)
            x = x + block["down"](nn.functional.gelu(block["up"](x)))
        return {"logits": self.head(x.mean(1))}


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 6)


def convnet() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    return model, torch.randn(4, 2, 8, 8)


def attention() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.randn(3, 7, 16)


NETWORKS = {"mlp": mlp, "convnet": convnet, "attention": attention}


def graph_of(name: str) -> tuple[CapturedGraph, Tensor]:
    """A float64 graph with randomised parameters and statistics, so that nothing is trivially zero, and an input."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.2 if tensor.dim() < 2 else torch.randn_like(tensor) / 3)
    return capture(model.double(), (x.double(),)), x.double()


def output(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result = network(x)
    return result["logits"] if isinstance(result, dict) else result


def with_gates(graph: CapturedGraph, log_alpha: Tensor) -> GatedNetwork:
    groups = find_groups(graph)
    gates = HardConcrete(groups.num_moves)
    with torch.no_grad():
        gates.log_alpha.copy_(log_alpha)
    return attach(groups, gates).eval()


def assert_close(actual: Tensor, expected: Tensor, relative: float = 1e-12) -> None:
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.mostly_slow
@pytest.mark.parametrize("density", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_gates_of_zero_and_one_compute_what_the_masked_dense_model_computes(name, density):
    graph, x = graph_of(name)
    plan = KeepPlan.random(find_groups(graph), density=density, seed=1)
    gated = with_gates(graph, torch.where(plan.keep, OPEN, SHUT))
    assert not plan.keep.all()
    assert_close(output(gated, x), output(masked(graph, plan), x))


@pytest.mark.parametrize("name", NETWORKS)
def test_open_gates_leave_the_network_as_it_was(name):
    graph, x = graph_of(name)
    assert_close(output(with_gates(graph, torch.tensor(OPEN)), x), output(graph.module(), x))


@pytest.mark.parametrize("name", NETWORKS)
def test_gating_changes_neither_graph_nor_weights_that_it_was_given(name):
    graph, x = graph_of(name)
    before = {key: value.clone() for key, value in graph.state().items()}
    code = graph.graph_module.code
    gated = gate(graph)
    gated.train()
    gated(x)
    with torch.no_grad():
        for weight in gated.weights().values():
            weight.add_(1)
    assert graph.graph_module.code == code
    assert all(torch.equal(value, before[key]) for key, value in graph.state().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_gate_and_every_weight_gets_a_gradient(name):
    graph, x = graph_of(name)
    gated = gate(graph, log_alpha=0.0).train()
    torch.manual_seed(0)
    # One draw leaves gates at exactly 0 or 1, where the gradient is 0; over many draws everyone has had a turn.
    for _ in range(40):
        out = gated(x)
        (out["logits"] if isinstance(out, dict) else out).square().sum().backward()
    assert (gated.gates.log_alpha.grad != 0).all()
    assert all(weight.grad is not None for weight in gated.weights().values())


def test_training_draws_new_gates_at_every_call_and_evaluation_does_not():
    graph, x = graph_of("mlp")
    gated = gate(graph, log_alpha=0.0)
    gated.train()
    assert not torch.equal(output(gated, x), output(gated, x))
    gated.eval()
    assert torch.equal(output(gated, x), output(gated, x))


def test_one_draw_serves_all_samples_of_a_batch():
    graph, x = graph_of("mlp")
    gated = gate(graph, log_alpha=0.0).train()
    together = output(gated, torch.cat([x, x]))
    assert_close(together[: len(x)], together[len(x) :])


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_and_shrinking_keep_the_function_of_the_median_gates(name):
    graph, x = graph_of(name)
    groups = find_groups(graph)
    plan = KeepPlan.random(groups, density=0.6, seed=3)
    # A gate that a reader cannot fold becomes 1, so only the others may be between 0 and 1 here.
    unfoldable = {int(m) for read in groups.reads if read.parameter is None for m in read.moves.flatten().tolist()}
    partial = torch.tensor([0.0 if move not in unfoldable else OPEN for move in range(groups.num_moves)])
    gated = with_gates(graph, torch.where(plan.keep, partial, torch.tensor(SHUT)))
    folded = fold(gated, plan)
    assert_close(output(masked(folded, plan), x), output(gated, x))
    assert_close(output(shrink(folded, plan).module(), x), output(gated, x))


def test_a_kept_gate_whose_median_is_zero_is_opened_rather_than_folded_to_zero():
    graph, x = graph_of("mlp")
    gated = with_gates(graph, torch.tensor(SHUT))
    plan = KeepPlan.everything(gated.groups)
    assert_close(output(fold(gated, plan).module(), x), output(graph.module(), x))


@pytest.mark.parametrize("name", NETWORKS)
def test_compaction_keeps_the_function_and_the_gates_of_what_is_left(name):
    graph, x = graph_of(name)
    plan = KeepPlan.random(find_groups(graph), density=0.6, seed=2)
    values = torch.linspace(-1, 3, len(plan.keep))
    gated = with_gates(graph, torch.where(plan.keep, values, torch.tensor(SHUT)))
    compacted = compact(gated)
    assert_close(output(compacted.gated, x), output(gated, x))
    assert torch.equal(compacted.gated.gates.log_alpha, gated.gates.log_alpha[compacted.kept_moves])
    inputs = {move for group in gated.groups.groups if group.kind == "inputs" for move in group.moves}
    assert compacted.kept_moves.tolist() == [m for m in range(len(plan.keep)) if plan.keep[m] or m in inputs]


@pytest.mark.parametrize("name", NETWORKS)
def test_compaction_says_which_part_of_each_parameter_is_left(name):
    graph, _ = graph_of(name)
    plan = KeepPlan.random(find_groups(graph), density=0.6, seed=2)
    gated = with_gates(graph, torch.where(plan.keep, OPEN, SHUT))
    compacted = compact(gated)
    small = compacted.gated.weights()
    for weight_name, weight in gated.weights().items():
        kept = weight.detach()
        for dim, indices in enumerate(compacted.parameter_keeps[weight_name]):
            kept = kept if indices is None else kept.index_select(dim, indices)
        assert torch.equal(kept, small[weight_name])


def test_compaction_with_nothing_to_remove_returns_the_same_network():
    graph, _ = graph_of("mlp")
    gated = gate(graph)
    compacted = compact(gated)
    assert compacted.gated is gated
    assert compacted.kept_moves.tolist() == list(range(gated.groups.num_moves))


def test_compaction_leaves_no_layer_empty():
    graph, x = graph_of("convnet")
    compacted = compact(with_gates(graph, torch.tensor(SHUT)))
    assert output(compacted.gated, x).shape == (4, 3)
    assert all(len(group.moves) >= 1 for group in compacted.gated.groups.groups)


def test_compaction_keeps_the_mode():
    graph, _ = graph_of("mlp")
    shut = torch.where(torch.arange(24) % 2 == 0, OPEN, SHUT)
    assert compact(with_gates(graph, shut).train()).gated.training
    assert not compact(with_gates(graph, shut).eval()).gated.training


def test_the_product_over_moves_has_finite_gradients_where_gates_are_zero():
    z = torch.tensor([0.0, 0.0, 0.5, 1.0], requires_grad=True)
    product_of(z, torch.tensor([[0, 1], [0, 2], [2, 3]])).sum().backward()
    assert torch.equal(z.grad, torch.tensor([0.5, 0.0, 1.0, 0.5]))


def test_a_model_without_removable_channels_is_refused():
    with pytest.raises(NothingToPruneError, match="no channel of this model can be removed"):
        gate(capture(nn.Softmax(-1), (torch.zeros(2, 3),)))


def test_a_gated_network_runs_in_bfloat16_autocast():
    graph, x = graph_of("mlp")
    gated = gate(graph.to(torch.float32)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gated(x.float())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert gated.gates.log_alpha.grad is not None


def test_weights_carry_the_users_names():
    graph, _ = graph_of("convnet")
    gated = gate(graph)
    assert set(gated.weights()) == {name for name, _ in graph.module().named_parameters()}
    assert set(gated.graph().state()) == set(graph.state())
