"""Intervals against values that networks compute, and against bounds worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from l0compress.graph import capture
from l0compress.graph.groups.intervals import Interval, intervals

INF = math.inf


class Elementwise(nn.Module):
    """What rises, what has a valley, sums, products, quotients and moves."""

    def forward(self, x: Tensor) -> Tensor:
        bounded = torch.tanh(x) * 4
        hidden = [
            *(nn.functional.gelu(bounded), nn.functional.silu(bounded), nn.functional.mish(bounded)),
            *(nn.functional.hardswish(bounded), nn.functional.elu(bounded), nn.functional.leaky_relu(bounded, 0.2)),
            *(nn.functional.threshold(bounded, 0.5, -1.0), bounded.clamp(-1, 2), nn.functional.hardsigmoid(bounded)),
            *(bounded - 0.3 * torch.sigmoid(x), 2 / (torch.sigmoid(x) + 1), -bounded / 3, bounded.softmax(-1)),
            nn.functional.relu6(nn.functional.softplus(bounded)),
        ]
        left, right = torch.cat(hidden, dim=1).chunk(2, dim=1)
        return (left * right).flatten(1).unsqueeze(1).transpose(1, 2)


class Convolutions(nn.Module):
    """Convolutions, grouped and not, batch norm, pools and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4 * 3 * 3, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x)) - 0.25
        x = torch.relu(self.norm(x + self.second(x)))
        x = nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 2, padding=1), 2, padding=1)
        return self.head(x.flatten(1)).mean(1)


class Words(nn.Module):
    """A table, layer norm, and a mean over a length that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.out = nn.Embedding(7, 5), nn.LayerNorm(5), nn.Linear(5, 4)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(self.table(tokens))).relu().mean(1)


class Recorder(fx.Interpreter):
    """Keeps what each node returns."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        self.seen[n.name] = value = super().run_node(n)
        return value


def tokens(num_samples: int, length: int) -> Tensor:
    return torch.randint(7, (num_samples, length))


CASES = {
    "elementwise": (Elementwise, lambda n: 3 * torch.randn(n, 4)),
    "convolutions": (Convolutions, lambda n: 3 * torch.randn(n, 2, 6, 6)),
    "words": (Words, lambda n: tokens(n, 3 + n % 5)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_value_is_outside_and_bounds_are_there(case) -> None:
    torch.manual_seed(0)
    kind, inputs = case
    graph = capture(kind().eval(), (inputs(2),))
    found, narrow = intervals(graph), 0
    for count in (2, 30, 31, 99):
        recorder = Recorder(graph.module())
        recorder.run(inputs(count))
        for name, bounds in found.items():
            value = recorder.seen[name].double()
            assert bool((value >= bounds.low).all() and (value <= bounds.high).all()), name
            narrow += bool(bounds.high.isfinite().all())
    assert narrow >= 4 * 5


def bounds(module: nn.Module, example: Tensor) -> Interval:
    """Those of what the module returns."""
    graph = capture(module.eval(), (example,))
    (output,) = (node for node in graph.nodes() if node.op == "output")
    return intervals(graph)[output.all_input_nodes[0].name]


def with_weights(layer: nn.Module, **weights: list) -> nn.Module:
    with torch.no_grad():
        for name, values in weights.items():
            getattr(layer, name).copy_(torch.tensor(values))
    return layer


class TestByHand:
    def test_a_linear_layer_of_shares_is_highest_where_its_positive_weights_see_ones(self):
        layer = with_weights(nn.Linear(3, 2), weight=[[1.0, -2.0, 0.5], [-1.0, -1.0, 0.0]], bias=[0.25, -0.5])
        found = bounds(nn.Sequential(nn.Sigmoid(), layer), torch.zeros(2, 3))
        torch.testing.assert_close(found.high, torch.tensor([[1.75, -0.5]]).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.low, torch.tensor([[-1.75, -2.5]]).double(), atol=1e-5, rtol=0)

    def test_weights_and_biases_that_are_not_above_zero_never_fire_over_a_relu_however_large_it_is(self):
        layer = with_weights(nn.Linear(2, 3), weight=[[-1.0, -2.0], [-1.0, 0.0], [-1.0, 1e-30]], bias=[0.0, -1.0, 0.0])
        found = bounds(nn.Sequential(nn.ReLU(), layer, nn.ReLU()), torch.zeros(2, 2))
        assert found.is_zero.tolist() == [[True, True, False]]
        assert found.high.tolist() == [[0.0, 0.0, INF]]

    def test_nothing_is_known_of_a_floating_input_and_a_byte_is_a_byte(self):
        layer = with_weights(nn.Linear(1, 1), weight=[[-1.0]], bias=[0.0])
        assert bounds(nn.Sequential(layer, nn.ReLU()), torch.zeros(2, 1)).high.item() == INF

        class OfBytes(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.float() / 255

        found = bounds(OfBytes(), torch.zeros(2, 4, dtype=torch.uint8))
        assert (found.low.item(), round(found.high.item(), 5)) == (0.0, 1.0)

    def test_a_normalised_value_is_at_most_the_root_of_one_less_than_their_number(self):
        norm = with_weights(nn.LayerNorm(5), weight=[1.0, 2.0, 0.0, 1.0, -1.0], bias=[0.0, 0.0, -1.0, -2.1, 0.0])
        found = bounds(norm, torch.zeros(2, 5))
        torch.testing.assert_close(found.high, torch.tensor([[2.0, 4.0, -1.0, -0.1, 2.0]]).double(), atol=1e-3, rtol=0)
        reached = norm(1e4 * torch.eye(5)).double()
        torch.testing.assert_close(reached.amax(0)[:2], found.high[0, :2], atol=1e-3, rtol=0)

    def test_a_batch_norm_whose_factor_is_zero_returns_its_bias(self):
        norm = with_weights(nn.BatchNorm1d(3), weight=[0.0, 0.0, 1.0], bias=[-0.5, 0.5, 0.0])
        found = bounds(nn.Sequential(norm, nn.ReLU()), torch.zeros(2, 3))
        assert (found.low.tolist(), found.high.tolist()) == ([[0.0, 0.5, 0.0]], [[0.0, 0.5, INF]])

    @pytest.mark.parametrize(("padding", "least"), [(0, 0.5), (1, 0.0), ("same", 0.0)])
    def test_a_padded_convolution_reads_zeros_too(self, padding, least):
        layer = with_weights(nn.Conv1d(1, 1, 1, padding=padding, bias=False), weight=[[[1.0]]])
        if padding == "same":
            layer = with_weights(nn.Conv1d(1, 1, 3, padding="same", bias=False), weight=[[[0.0, 0.0, 1.0]]])

        class Half(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(x.clamp(0.5, 1.0))

        assert round(bounds(Half(), torch.zeros(2, 1, 5)).low.item(), 5) == least

    def test_what_only_just_cancels_is_not_called_silent(self):
        """Rounding may lift it above zero, as far as a bound that knows no order of the terms can tell."""
        layer = with_weights(nn.Linear(3, 1), weight=[[0.5, 0.25, 0.25]], bias=[-6.0])
        found = bounds(nn.Sequential(nn.ReLU6(), layer, nn.ReLU()), torch.zeros(2, 3))
        assert 0 < found.high.item() < 1e-4

    def test_a_tensor_that_is_written_in_place_is_not_what_it_was(self):
        class Written(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                first = x.sigmoid() + 0
                first.mul_(-2)
                return first.relu()

        found = bounds(Written(), torch.zeros(2, 3))
        assert found.low.item() == 0
        assert found.high.item() in (0.0, INF)

    def test_along_a_free_size_the_bounds_are_those_of_all_positions(self):
        class Joined(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([x.sigmoid(), x.sigmoid() + 2], dim=1)

        found = bounds(Joined(), torch.zeros(2, 4, 3))
        assert [round(bound.item(), 4) for bound in (found.low, found.high)] == [0.0, 3.0]
