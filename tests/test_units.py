"""A network cut into units computes the same, also where the weights of a unit are there only while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

import l0compress as l0
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.training.dropout import drop_
from l0compress.training.fake_quantization import fake_quantized
from l0compress.training.settings import FinetuneSettings
from l0compress.training.ternary import ternary_network_, ternary_weights
from l0compress.training.units import Units, in_units


class Residual(nn.Module):
    """Writes in place to what it has made, as many image networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.third, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.first(x)))
        y = self.second(x)
        y += self.third(x)  # the third reads weights of its own before the second's output is written to
        return self.head(F.relu_(y).mean((2, 3)))


class Tokens(nn.Module):
    """A table read at both ends, views of weights beside the input, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.places = nn.Embedding(9, 8), nn.Parameter(torch.randn(1, 1, 8)), nn.Embedding(7, 8)
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.twice, self.scale = nn.Linear(8, 8), nn.Parameter(torch.tensor(0.7))
        self.offset = nn.Parameter(torch.randn(8))

    def forward(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.cat([self.first.expand(ids.shape[0], -1, -1), self.table(ids)], 1)
        x = self.twice(x + self.places.weight[: x.shape[1]])
        offset = self.offset.expand_as(x)  # seen again after other weights are read
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = offset + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = self.twice(torch.relu(x))
        return x @ self.table.weight.T * self.scale, {"hidden": x}


def tokens() -> tuple[nn.Module, Tensor]:
    return Tokens(), torch.randint(0, 9, (3, 5))


def images() -> tuple[nn.Module, Tensor]:
    return Residual(), torch.randn(3, 2, 5, 5)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, 2, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def sequences() -> tuple[nn.Module, Tensor]:
    return Recurrent(), torch.randn(3, 5, 4)


def wide() -> tuple[nn.Module, Tensor]:
    """Inputs are smaller than weights, so that factors go on the inputs, and weights are read as they are."""
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 3)), torch.randn(3, 4)


def captured(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[l0.CapturedGraph, Tensor]:
    torch.manual_seed(0)
    model, x = make()
    return l0.capture(model.eval(), (x,)), x


class Views(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        del ctx
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        del ctx
        return gradients


def handed_on(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a unit gets: views of what is differentiated, which torch forbids to write to."""
    positions = [place for place, arg in enumerate(args) if isinstance(arg, Tensor) and arg.requires_grad]
    views = Views.apply(*(args[place] for place in positions)) if positions else ()
    found = dict(zip(positions, views, strict=True))
    return tuple(found.get(place, arg) for place, arg in enumerate(args))


def only_while_they_run(units: Units) -> None:
    """Let the weights of a unit be NaN but for the time that it runs, and hand it what it takes, as FSDP does."""
    for unit in units.units:
        values = {weight: weight.detach().clone() for weight in unit.parameters() if weight not in units.kept}

        def gather(_: nn.Module, args: Any, values: dict[nn.Parameter, Tensor] = values) -> Any:
            for weight, value in values.items():
                weight.data.copy_(value)
            return handed_on(args)

        def free(*_: Any, values: dict[nn.Parameter, Tensor] = values) -> None:
            for weight in values:
                weight.data.fill_(torch.nan)

        free()
        unit.register_forward_pre_hook(gather)
        unit.register_forward_hook(free)


def computed(network: nn.Module, x: Tensor) -> Any:
    """What comes out with gradients, for which layers choose otherwise what their factors multiply."""
    torch.manual_seed(3)
    return pytree.tree_map(torch.detach, network(x))


@pytest.mark.mostly_slow
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("make", [tokens, images, sequences, wide])
def test_no_unit_hands_on_a_weight(make: Callable[[], tuple[nn.Module, Tensor]], training: bool) -> None:
    graph, x = captured(make)
    gated, network = (l0.gate(graph).train(training) for _ in range(2))
    units = in_units(network.network)
    assert len(units.units) > 2
    only_while_they_run(units)
    torch.testing.assert_close(computed(units.network, x), computed(gated, x), rtol=0, atol=0)
    units.network.eval()  # and the mode may change
    torch.testing.assert_close(computed(units.network, x), computed(gated.eval(), x), rtol=0, atol=0)


@pytest.mark.parametrize("make", [tokens, images, sequences])
def test_gradients_are_those_of_the_network(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    graph, x = captured(make)
    gated, other = (l0.gate(graph) for _ in range(2))
    for network in (gated, in_units(other.network).network):
        torch.manual_seed(3)
        out = network(x)
        (out[0] if isinstance(out, tuple) else out).square().sum().backward()
    for (name, weight), after in zip(gated.named_parameters(), other.parameters(), strict=True):
        assert weight.grad is not None and after.grad is not None, name
        torch.testing.assert_close(after.grad, weight.grad, rtol=0, atol=0)


def dropped(graph: l0.CapturedGraph) -> GraphNetwork:
    return drop_(graph.module(), graph, FinetuneSettings(dropout=0.2, drop_connect=0.2))


def in_ternary(graph: l0.CapturedGraph) -> GraphNetwork:
    return ternary_network_(graph.module(), ternary_weights(graph))


@pytest.mark.parametrize("rewrite", [dropped, in_ternary, fake_quantized])
def test_what_is_made_of_a_weight_stays_in_its_unit(rewrite: Callable[[l0.CapturedGraph], GraphNetwork]) -> None:
    graph, x = captured(tokens)
    expected, network = (rewrite(graph).train() for _ in range(2))
    units = in_units(network)
    only_while_they_run(units)
    torch.testing.assert_close(computed(units.network, x), computed(expected, x), rtol=0, atol=0)


def test_each_weight_is_in_the_one_unit_that_reads_it_and_others_above_all() -> None:
    graph, _ = captured(tokens)
    units = in_units(graph.module())
    places = {name: path.partition(".")[0] for path, name in named(units).items()}
    assert {name for name, place in places.items() if not place.startswith("unit_")} == {
        *("table.weight", "twice.weight", "twice.bias", "scale")
    }
    # The offset is seen by what is before the query and by what is behind the output.
    assert places["qkv.weight"] == places["qkv.bias"] == places["out.weight"] != places["places.weight"]
    assert [weight.shape for weight in units.kept] == [()]


def named(units: Units) -> dict[str, str]:
    """The plain name of each path."""
    paths = (path.removeprefix("body.") for path, _ in units.network.named_parameters())
    return {path: path.partition(".body.")[2] or path for path in paths}


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (4, 4), (32, 8)])
def test_units_have_about_equally_many_weights(number: int, expected: int) -> None:
    layers = [nn.Linear(5, 5) for _ in range(8)]
    graph = l0.capture(nn.Sequential(*layers), (torch.zeros(2, 5),))
    sizes = [
        sum(weight.numel() for weight in unit.parameters()) for unit in in_units(graph.module(), number=number).units
    ]
    assert sizes == [30 * 8 // expected] * expected


def test_a_weight_that_is_returned_is_kept_by_all() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), self.layer.weight.T

    graph = l0.capture(Returns(), (torch.zeros(2, 4),))
    network = graph.module()
    units = in_units(network)
    assert units.kept == {network.get_parameter("layer.weight")}
    only_while_they_run(units)
    torch.testing.assert_close(computed(units.network, torch.ones(2, 4)), computed(graph.module(), torch.ones(2, 4)))
