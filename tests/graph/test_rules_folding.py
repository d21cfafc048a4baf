"""A weight that is computed from parameters alone, by a norm, is folded at capture and prunes like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import pytest
import torch
import torch.nn.functional as F
from networks import Net, image, tokens, vector
from rulechecks import assert_exact, check
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from l0compress.graph import capture

NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm by columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm of all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
    "orthogonal by exponential": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="matrix_exp"),
    "orthogonal by Cayley": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
}


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", [name for name in NORMS if name != "orthogonal"])
def test_parametrised_linear_layers(tmp_path: Path, name: str) -> None:
    layers = {"a": NORMS[name](nn.Linear(6, 8)), "b": NORMS[name](nn.Linear(8, 4))}
    graph = check(lambda s, x: s.b(F.gelu(s.a(x))), vector(), {"a channels": 8, "a inputs": 6}, onnx=tmp_path, **layers)
    assert sorted(graph.state()) == ["a.bias", "a.weight", "b.bias", "b.weight"]


@pytest.mark.parametrize("name", ["weight norm", "spectral norm"])
def test_parametrised_convolutions(name: str) -> None:
    layers = {"a": NORMS[name](nn.Conv2d(3, 8, 3)), "b": NORMS[name](nn.Conv2d(8, 4, 1))}
    check(lambda s, x: s.b(F.gelu(s.a(x))).flatten(2).mean(2), image(), {"a channels": 8}, **layers)


def test_orthogonal_by_reflections() -> None:
    """Its parameters hold signs, which random ones would make zeros of."""
    net = Net(lambda s, x: s.b(F.gelu(s.a(x))), a=NORMS["orthogonal"](nn.Linear(6, 8)), b=nn.Linear(8, 4))
    assert_exact(capture(net, (vector(),)).to(torch.float64), {"a channels": 8, "a inputs": 6})


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean 0 and deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True, momentum=0.0)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def test_standardised_weights() -> None:
    layers = {"a": Standardised(3, 8, 3), "b": Standardised(8, 4, 1)}
    graph = check(lambda s, x: s.b(F.gelu(s.a(x))).flatten(2).mean(2), image(), {"a channels": 8}, **layers)
    assert all("weight" not in name or name.endswith("weight_folded") for name in graph.state())


def test_cosine_classifier() -> None:
    def cosine(s: nn.Module, x: Tensor) -> Tensor:
        return F.linear(F.normalize(F.gelu(s.a(x)), dim=-1), F.normalize(s.w, dim=1))

    check(cosine, vector(), {"a channels": 8, "a inputs": 6}, a=nn.Linear(6, 8), w=nn.Parameter(torch.zeros(4, 8)))


@pytest.mark.parametrize("name", NORMS)
def test_the_capture_computes_what_the_model_does_and_trains(name: str) -> None:
    model = models.randomise(Net(lambda s, x: s.b(s.a(x)), a=NORMS[name](nn.Linear(6, 8)), b=nn.Linear(8, 4)))
    network = capture(model, (vector(),)).module()
    assert torch.allclose(network(vector()), model(vector()), rtol=1e-5, atol=1e-6)
    network.train()(vector()).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_low_rank_adapter_keeps_its_factors() -> None:
    """Products and sums of parameters let channels pass, so they stay, and the rank can go too."""
    layers = {
        "a": nn.Linear(12, 8),
        "up": nn.Parameter(torch.zeros(8, 3)),
        "down": nn.Parameter(torch.zeros(3, 12)),
        "b": nn.Linear(8, 4),
    }
    expected = {"up channels": 8, "down channels": 3, "down #2 channels": 12}

    def adapted(s: nn.Module, x: Tensor) -> Tensor:
        return s.b(F.gelu(F.linear(x, s.a.weight + s.up @ s.down, s.a.bias)))

    graph = check(adapted, tokens(), expected, **layers)
    assert {"up", "down", "a.weight"} <= set(graph.state())


def test_a_layer_that_is_used_twice_stays_one() -> None:
    layers = {"a": nn.Linear(6, 8), "m": parametrizations.weight_norm(nn.Linear(8, 8)), "b": nn.Linear(8, 4)}
    graph = check(
        lambda s, x: s.b(F.gelu(s.m(F.gelu(s.m(F.gelu(s.a(x))))))),
        vector(),
        {"a channels": 8, "a inputs": 6},
        **layers,
    )
    assert sorted(graph.state()) == ["a.bias", "a.weight", "b.bias", "b.weight", "m.bias", "m.weight"]


def test_a_parameter_with_another_use_stays_tied() -> None:
    """Folding the normalised weight would leave two where the model has one."""

    def tied(s: nn.Module, x: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, s.w)), F.normalize(s.w.T, dim=1))

    graph = capture(models.randomise(Net(tied, w=nn.Parameter(torch.zeros(8, 6)))), (vector(),))
    assert list(graph.state()) == ["w"]
