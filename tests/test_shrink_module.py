"""The user's own module, made smaller in place: it computes what the masked dense model does, or stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from models import LeNet5, mobilenet, randomise
from random_networks import Draw, Network, draws, image_networks, token_networks
from torch import Tensor, nn

import l0compress as l0
from l0compress.errors import InputError, NothingToPruneError, PlanError, SurgeryError
from l0compress.graph.cut.plan import KeepPlan

TOLERANCE = 1e-10


class Attention(nn.Module):
    """As many heads as each is wide, so that only trying tells which number is which, and which is neither."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale, self.patience = heads, width // heads, 0.5, 4
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT * self.scale).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))


class OwnNorm(nn.Module):
    """A root-mean-square norm as language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norm, self.attention = nn.LayerNorm(16), Attention()
        self.rms, self.mlp = nn.RMSNorm(16, eps=1e-5), nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.own = OwnNorm(16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attention(self.norm(x))
        return self.head(self.own(x + self.mlp(self.rms(x))))


class Layers(nn.Module):
    """Layers one after the other; of a recurrent one the outputs."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


def images(*layers: nn.Module) -> nn.Module:
    return Layers(nn.Conv2d(3, 8, 1), *layers)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.PReLU(16), nn.Linear(16, 3)),
        lambda: torch.randn(2, 6),
    ),
    "lenet": (LeNet5, lambda: torch.randn(2, 1, 28, 28)),
    "mobilenet": (mobilenet, lambda: torch.randn(2, 3, 16, 16)),
    "norms of channels": (
        lambda: images(nn.GroupNorm(4, 8), nn.Conv2d(8, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 2, 1)),
        lambda: torch.randn(2, 3, 6, 6),
    ),
    "transposed": (
        lambda: images(nn.ConvTranspose2d(8, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, 2, 1)),
        lambda: torch.randn(2, 3, 4, 4),
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.ConvTranspose1d(8, 6, 2, groups=2), nn.Conv1d(6, 2, 1)),
        lambda: torch.randn(2, 3, 7),
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(2, 8, 2), nn.BatchNorm3d(8), nn.Conv3d(8, 8, 1, groups=8), nn.Conv3d(8, 2, 1)),
        lambda: torch.randn(2, 2, 3, 3, 3),
    ),
    "lstm": (lambda: Layers(nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)), lambda: torch.randn(2, 4, 5)),
    "gru": (lambda: Layers(nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)), lambda: torch.randn(2, 4, 5)),
    "transformer": (Block, lambda: torch.randint(11, (2, 5))),
}


def planned(model: nn.Module, x: Tensor, density: float = 0.5, seed: int = 1) -> KeepPlan:
    graph = l0.capture(model, (x,))
    return KeepPlan.random(l0.find_groups(graph), density, seed)


def held(model: nn.Module) -> list[Any]:
    """All that a refusal may not change: objects, shapes, values, attributes, modes."""
    tensors = [(name, id(t), t.shape, t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()]
    plain = [
        (name, type(module), {key: value for key, value in vars(module).items() if isinstance(value, int | tuple)})
        for name, module in model.named_modules()
    ]
    return [tensors, plain]


def assert_untouched(model: nn.Module, before: list[Any]) -> None:
    tensors, plain = held(model)
    for (*was, old), (*now, new) in zip(before[0], tensors, strict=True):
        assert was == now
        assert torch.equal(old, new)
    assert plain == before[1]


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", MODULES)
def test_a_module_computes_what_the_masked_dense_model_computes(name):
    build, example = MODULES[name]
    torch.manual_seed(0)
    model, x = randomise(build()).double(), example()
    x = x.double() if x.is_floating_point() else x
    plan = planned(model, x)
    reference = l0.masked(plan.groups.graph, plan)
    before = sum(parameter.numel() for parameter in model.parameters())
    equality = l0.shrink_module_(model, plan)
    assert equality.max_relative < TOLERANCE
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-9, atol=1e-9)
    after = sum(parameter.numel() for parameter in model.parameters())
    whole_inputs = sum(g.kind == "inputs" for g in plan.groups.groups)
    assert plan.cost.params <= after < before
    assert (after == plan.cost.params) == (whole_inputs == 0)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["Bert", "Llama", "Qwen3", "GPT2"])
def test_models_of_transformers_follow_in_every_width(name):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
        "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    more = {"Llama": {"num_key_value_heads": 2}, "Qwen3": {"num_key_value_heads": 2, "head_dim": 4}}
    kind = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForMaskedLM" if name == "Bert" else f"{name}ForCausalLM"
    config = getattr(transformers, f"{name}Config")(**sizes, **more.get(name, {}))
    model, ids = randomise(getattr(transformers, kind)(config)), torch.randint(20, (2, 5))
    graph = l0.capture(model, (), {"input_ids": ids}, dynamic="batch")
    plan = KeepPlan.random(l0.find_groups(graph), 0.5, seed=1)
    assert {"channels", "blocks", "width"} <= {group.kind for group in plan.groups.groups}
    before = type(model), list(model.state_dict())
    assert l0.shrink_module_(model, plan).max_relative < 1e-5  # their norms are in float32, whatever the model is
    assert (type(model), list(model.state_dict())) == before
    assert sum(parameter.numel() for parameter in model.parameters()) == plan.cost.params


def test_attributes_and_classes_stay_those_of_the_layers():
    model, x = randomise(Block()), torch.randint(11, (2, 5))
    groups = l0.find_groups(l0.capture(model, (x,)))
    plan = KeepPlan.from_kept(
        groups, {"norm channels": range(10), "attention.qkv blocks": [0, 3, 1], "mlp.0 channels": [4, 5]}
    )
    parameters = dict(model.named_parameters())
    l0.shrink_module_(model, plan)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert model.head.weight is model.embed.weight
    assert (
        repr(model)
        == """Block(
  (embed): Embedding(11, 10)
  (norm): NarrowLayerNorm((10,), eps=1e-05, elementwise_affine=True, bias=True, dense_width=16)
  (attention): Attention(
    (qkv): Linear(in_features=10, out_features=36, bias=True)
    (proj): Linear(in_features=12, out_features=10, bias=True)
  )
  (rms): NarrowRMSNorm((10,), eps=1e-05, elementwise_affine=True, dense_width=16)
  (mlp): Sequential(
    (0): Linear(in_features=10, out_features=2, bias=True)
    (1): GELU(approximate='none')
    (2): Linear(in_features=2, out_features=10, bias=True)
  )
  (own): OwnNorm()
  (head): Linear(in_features=10, out_features=11, bias=False)
)"""
    )
    attention = model.attention
    assert (attention.num_heads, attention.head_dim, attention.patience) == (3, 4, 4)


class Fixed(nn.Module):
    """Its forward says how wide a layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.heads, self.last = nn.Linear(4, 16), nn.Linear(4, 12), nn.Linear(28, 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.heads(x).view(-1, 3, 4).relu().flatten(1)
        return self.last(torch.cat([self.wide(x).relu(), heads], 1))


def test_code_with_a_width_in_it_is_refused_with_the_line_and_the_groups():
    model, x = randomise(Fixed()).train(), torch.randn(2, 4)
    model.wide.eval()
    model.last.weight.grad = torch.ones_like(model.last.weight)
    groups = l0.find_groups(l0.capture(model, (x,)))
    plan = KeepPlan.from_kept(groups, {"wide channels": range(6), "heads blocks": [0, 2]})
    before, grad, line = held(model), model.last.weight.grad, Fixed.forward.__code__.co_firstlineno + 1
    with pytest.raises(SurgeryError) as error:
        l0.shrink_module_(model, plan)
    assert str(error.value) == (
        f"the code of Fixed cannot follow the plan in 'heads blocks' (Fixed at test_shrink_module.py:{line}, heads = "
        "self.heads(x).view(-1, 3, 4).relu().flatten(1): shape '[-1, 3, 4]' is invalid for input of size 16). Nothing "
        "was changed. Write sizes in forward so that they follow from weights, inputs or attributes of the same "
        "module; pass whole=['heads blocks'], so that they stay whole, with zeros for what is dropped; or use the "
        "small graph's own module, small.module()."
    )
    assert_untouched(model, before)
    assert model.last.weight.grad is grad
    assert (model.training, model.wide.training) == (True, False)

    equality = l0.shrink_module_(model, plan, whole=["heads *"])
    assert equality.max_relative < 1e-5
    assert (model.wide.out_features, model.heads.out_features, model.last.in_features) == (6, 12, 18)
    assert not model.heads.weight[4:8].any()
    assert not model.last.weight[:, 6 + 4 : 6 + 8].any()
    assert (model.training, model.wide.training) == (True, False)
    assert model.last.weight.grad is None


def trained_small(model: nn.Module, x: Tensor) -> tuple[KeepPlan, l0.CapturedGraph]:
    gated = l0.gate(l0.capture(model, (x,)))
    budget = l0.Budget(gated, {"macs": 0.5})
    optimizer = torch.optim.AdamW(gated.param_groups(lr=1e-2, gate_lr=0.5))
    gated.train()
    for _ in range(8):
        (gated(x).square().mean() + budget.penalty()).backward()
        optimizer.step()
        budget.step()
    plan = l0.harden(gated, budget)
    return plan, gated.shrink(plan)


def test_trained_weights_come_from_the_small_graph_and_go_into_a_fresh_process():
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    model, x = randomise(build()), torch.randn(32, 6)
    plan, small = trained_small(model, x)
    with pytest.raises(PlanError) as error:
        l0.shrink_module_(model, plan)
    assert "the plan was made by training, but the graph has the weights from before training" in str(error.value)
    l0.shrink_module_(model, plan, small)
    torch.testing.assert_close(model(x), small.module()(x))

    fresh = build()
    again = KeepPlan.from_tensors(l0.find_groups(l0.capture(fresh, (x,))), plan.tensors())
    l0.shrink_module_(fresh, again)
    fresh.eval().load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    fresh.train()(x).square().mean().backward()
    torch.optim.Adam(fresh.parameters()).step()


def test_an_optimizer_from_before_the_cut_fails_instead_of_training_nothing():
    model, x = randomise(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))), torch.randn(8, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    l0.shrink_module_(model, planned(model, x))
    model(x).sum().backward()
    with pytest.raises(RuntimeError, match="must match"):
        optimizer.step()


def test_weights_that_are_zero_in_the_plan_are_zero_in_the_module():
    model, x = randomise(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))), torch.randn(8, 4)
    mask = torch.rand(2, 8) > 0.5
    plan = planned(model, x).with_masks({"2.weight": mask})
    l0.shrink_module_(model, plan)
    assert torch.equal(model[2].weight != 0, plan.small_masks()["2.weight"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda _, plan: (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), plan),
            "the plan was made for a Sequential whose '0.weight' has shape (8, 4), and here it has (6, 4). Nothing was "
            "changed. Pass the module in the size that was captured; one that is shrunk already needs nothing more.",
        ),
        (
            lambda model, plan: (nn.ModuleDict({"net": model}), plan),
            "the plan cuts '0.weight', '0.bias', '2.weight', which ModuleDict does not hold as a parameter or buffer. "
            "Nothing was changed. Pass the module that was captured, without a wrapper; remove parametrisations such "
            "as weight_norm before capture, and register constants of a layer's width as buffers.",
        ),
        (
            lambda model, plan: (model, plan.tensors()),
            "shrink_module_ takes a plan, but this is dict. Nothing was changed. Write shrink_module_(model, "
            "result.plan, result.small).",
        ),
        (
            lambda _, plan: (plan.groups.graph, plan),
            "shrink_module_ takes a module, but this is CapturedGraph. Nothing was changed. Pass the nn.Module that "
            "was captured; it is changed in place.",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(spoil, message):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    module, plan = spoil(model, planned(model, torch.randn(2, 4)))
    with pytest.raises(InputError) as error:
        l0.shrink_module_(module, plan)
    assert str(error.value) == message


def test_a_glob_that_stands_for_no_group_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(PlanError) as error:
        l0.shrink_module_(model, planned(model, torch.randn(2, 4)), whole=["1 *"])
    assert str(error.value) == ("there is no group '1 *'. Nothing was changed. The groups are 0 channels, 0 inputs.")


TALLY = {"followed": 0, "refused": 0}


def follow(network: Network, draw: Draw) -> None:
    """Whatever the network: its module equals the masked dense model, or is bit for bit what it was."""
    try:
        groups = l0.find_groups(network.graph)
    except NothingToPruneError:
        return
    model = copy.deepcopy(network.module).double()
    plan, before = KeepPlan.random(groups, draw.density, draw.seed), held(model)
    (x,) = network.graph.example_args
    try:
        l0.shrink_module_(model, plan)
    except SurgeryError:
        TALLY["refused"] += 1
        assert_untouched(model, before)
        return
    TALLY["followed"] += 1
    with torch.no_grad():
        found, expected = model(x), l0.masked(network.graph, plan)(x)
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    assert sum(p.numel() for p in model.parameters()) >= plan.cost.params


@pytest.mark.mostly_slow
@pytest.mark.parametrize("networks", [image_networks, token_networks])
def test_random_networks_follow_or_stay_as_they_are(networks):
    TALLY.update(followed=0, refused=0)
    checks = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
    run = settings(
        max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=checks
    )
    run(given(networks(), draws())(follow))()
    assert TALLY["followed"] > 0
