"""The penalty on activations and what never fires: against closed forms, and against the dense network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from clouds import QUICK, blobs, trained_mlp
from torch import Tensor, nn

from l0compress.data import Data, Split
from l0compress.errors import InputError
from l0compress.graph import CapturedGraph, KeepPlan, capture, find_groups, masked, shrink
from l0compress.training.activations.penalty import Activations, charged, observe_
from l0compress.training.activations.rectifiers import Rectifier, find_rectifiers
from l0compress.training.activations.removal import removable
from l0compress.training.activations.silent import (
    firing_on,
    is_exact,
    provably_firing,
    silent_moves,
    without_silent,
)
from l0compress.training.events import DECIDED
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings
from l0compress.verification.calls import Call
from l0compress.verification.equality import verify

PENALISED = FinetuneSettings(activation_l1=0.5)
RECTIFIERS = {
    "relu": (torch.relu, False),
    "relu6": (F.relu6, False),
    "clamp from 0": (lambda x: x.clamp(min=0), False),
    "clamp to 0": (lambda x: x.clamp(max=0), True),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), False),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 2.0), False),
    "hardsigmoid": (F.hardsigmoid, False),
    "hardswish": (F.hardswish, True),
    "threshold": (lambda x: F.threshold(x, 0.5, 0.0), False),
    "a slope of nothing": (lambda x: F.leaky_relu(x, 0.0), False),
}
OTHERS = (torch.tanh, F.gelu, lambda x: x.clamp(-1, 1), lambda x: F.leaky_relu(x, 0.1), lambda x: F.threshold(x, 0, 1))


class Between(nn.Module):
    """Two layers, and a function between them that no module has a name for."""

    def __init__(self, function, units: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first, self.second = nn.Linear(3, units), nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


def captured(module: nn.Module, *shape: int) -> CapturedGraph:
    return capture(module.eval(), (torch.zeros(2, *shape),))


def hidden(graph: CapturedGraph, silent: Tensor) -> list[int]:
    """Which units of the first group of channels are silent."""
    (group, *_) = (group for group in find_groups(graph).groups if group.kind == "channels")
    return [position for position, move in enumerate(group.moves) if silent[move]]


def proved(graph: CapturedGraph) -> Tensor:
    groups = find_groups(graph)
    return silent_moves(groups, provably_firing(groups))


def seen(graph: CapturedGraph, *inputs: Tensor) -> Tensor:
    groups = find_groups(graph)
    return silent_moves(groups, firing_on(groups, Split(inputs, None).batches(3)))


class TestRectifiers:
    @pytest.mark.parametrize("name", RECTIFIERS)
    def test_found_by_what_they_compute(self, name):
        function, signed = RECTIFIERS[name]
        (found,) = find_rectifiers(captured(Between(function), 3))
        assert (found.units, found.signed) == (5, signed)

    def test_nothing_else_is(self):
        assert [find_rectifiers(captured(Between(function), 3)) for function in OTHERS] == [()] * len(OTHERS)

    def test_one_behind_which_nothing_can_be_removed_is_left_alone(self):
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU())
        assert find_rectifiers(captured(net, 3)) == (Rectifier("relu", 4, False),)


class TestPenalty:
    @pytest.mark.parametrize("name", RECTIFIERS)
    def test_is_the_mean_over_samples_and_positions_added_up_over_units(self, name):
        model, x = Between(RECTIFIERS[name][0]), torch.randn(2, 7, 3)
        graph = capture(model.eval(), (x,))
        network = observe_(graph.module(), graph, PENALISED).train()
        network(x)
        expected = 0.5 * model.function(model.first(x)).abs().mean((0, 1)).sum()
        torch.testing.assert_close(charged(torch.zeros(()), network, 0.5), expected)

    def test_the_gradient_is_the_mean_of_the_inputs_that_a_unit_fires_on(self):
        model, x = Between(torch.relu), torch.randn(20, 3)
        graph = captured(model, 3)
        network = observe_(graph.module(), graph, PENALISED).train()
        network(x)
        charged(torch.zeros(()), network, 0.25).backward()
        fires = (model.first(x) > 0).float()
        weights = dict(network.named_parameters())
        torch.testing.assert_close(weights["first.weight"].grad, 0.25 * fires.T @ x / 20)
        torch.testing.assert_close(weights["first.bias"].grad, 0.25 * fires.mean(0))
        assert weights["second.weight"].grad is None

    def test_neither_the_size_of_a_batch_nor_that_of_an_image_matters(self):
        class Ones(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.second(self.first(x).relu()).mean((2, 3))

        graph = captured(Ones(), 1, 4, 4)
        network = observe_(graph.module(), graph, PENALISED).train()
        norms = []
        for shape in ((2, 1, 4, 4), (9, 1, 4, 4), (3, 1, 8, 6)):
            network(torch.ones(shape))
            norms.append(charged(torch.zeros(()), network, 1.0).item())
        assert norms == pytest.approx([norms[0]] * 3, rel=1e-6)

    @pytest.mark.slow
    def test_of_batches_in_parts_it_is_that_of_the_whole(self, graph, data):
        whole = finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, activation_l1=0.3))
        parts = finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, activation_l1=0.3, accumulate=2))
        assert whole.history[0].loss == pytest.approx(parts.history[0].loss, rel=1e-4)
        assert whole.history[0].metric == pytest.approx(parts.history[0].metric, abs=0.03)

    def test_neither_in_evaluation_nor_where_it_is_not_asked_for(self):
        graph, x = captured(Between(torch.relu), 3), torch.randn(4, 3)
        plain = graph.module()
        network = observe_(graph.module(), graph, PENALISED)
        assert torch.equal(network.eval()(x), plain(x))
        assert charged(torch.zeros(()), network, 1.0).item() == 0
        assert torch.equal(network.train()(x), plain(x))
        assert network.state_dict().keys() == plain.state_dict().keys()
        untouched = observe_(graph.module(), graph, FinetuneSettings())
        assert not [module for module in untouched.modules() if isinstance(module, Activations)]
        loss = torch.ones(())
        assert charged(loss, untouched, 0.0) is loss


def over_shares(weight: list[list[float]], bias: list[float]) -> CapturedGraph:
    """Hidden units that read two shares, which add up to one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Softmax(-1), nn.Linear(2, len(bias)), nn.ReLU(), nn.Linear(len(bias), 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor(weight))
        net[1].bias.copy_(torch.tensor(bias))
    return captured(net, 2)


class TestProofs:
    def test_units_that_cannot_fire_are_found_and_no_others(self):
        graph = over_shares([[1.0, 1.0], [-1.0, -2.0], [1.0, -3.0], [0.5, 0.5]], [-2.5, 0.0, -0.5, 0.1])
        assert hidden(graph, proved(graph)) == [0, 1]

    def test_without_them_every_input_gets_the_same(self):
        graph = over_shares([[1.0, 1.0], [-1.0, -2.0], [1.0, -3.0]], [-2.5, 0.0, -0.5])
        groups = find_groups(graph)
        firing = provably_firing(groups)
        plan = without_silent(groups, silent_moves(groups, firing), firing)
        assert int(plan.keep.sum()) == groups.num_moves - 2
        x = 100 * torch.randn(500, 2)
        small = shrink(graph, plan)
        assert torch.equal(masked(graph, plan)(x), graph.module()(x))
        torch.testing.assert_close(small.module()(x), graph.module()(x))
        assert small.state()["1.weight"].shape == (1, 2)

    def test_nothing_is_proved_of_what_reads_the_input(self):
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        with torch.no_grad():
            net[0].bias.fill_(-100)
        assert not proved(captured(net, 3)).any()
        assert hidden(captured(net, 3), seen(captured(net, 3), torch.randn(10, 3))) == [0, 1, 2, 3]

    def test_a_channel_that_batch_norm_holds_below_zero(self):
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 1))
        with torch.no_grad():
            net[1].weight[:2] = 0
            net[1].bias.copy_(torch.tensor([-0.5, 0.5, 0.0]))
        graph = captured(net, 1, 6, 6)
        assert hidden(graph, proved(graph)) == [0]


class TestWhatIsRead:
    def test_a_unit_that_one_of_two_readers_sees_fire_stays(self):
        class Residual(nn.Module):
            """The stream goes through a rectifier on its way to one reader, and plain to the other."""

            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.stem, self.one, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                stream = -self.stem(x).abs()
                return self.one(stream.relu()) + self.other(stream)

        graph = captured(Residual(), 3)
        assert len(find_rectifiers(graph)) == 1
        assert not seen(graph, torch.randn(10, 3)).any()

    def test_a_value_that_is_written_in_place_counts_as_it_is_read(self):
        class Written(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
                nn.init.constant_(self.first.bias, -100.0)

            def forward(self, x: Tensor) -> Tensor:
                units = self.first(x)
                F.relu(units, inplace=True)
                return self.second(units)

        graph = captured(Written(), 3)
        assert hidden(graph, seen(graph, torch.randn(10, 3))) == [0, 1, 2, 3]

    def test_an_input_that_is_always_zero_is_no_unit(self):
        graph = captured(Between(torch.relu), 3)
        x = torch.randn(10, 3)
        x[:, 1] = 0
        silent = seen(graph, x)
        (inputs,) = (group for group in find_groups(graph).groups if group.kind == "inputs")
        assert not silent[list(inputs.moves)].any()

    def test_a_plan_that_silences_what_fires_is_not_exact(self):
        graph = over_shares([[1.0, 1.0], [-1.0, -2.0]], [0.5, 0.0])
        groups = find_groups(graph)
        firing = provably_firing(groups)
        assert is_exact(KeepPlan.without(groups, [1]), firing)
        assert not is_exact(KeepPlan.without(groups, [0]), firing)

    def test_widths_of_convolutions_stay_whole_blocks(self):
        assert [removable(width, 9) for width in (16, 24, 20, 9)] == [8, 8, 4, 9]


@pytest.fixture(scope="module")
def apart() -> Data:
    """Three clouds that are further apart, so that fewer units than there are tell them from one another."""

    def part(seed: int) -> Split:
        split = blobs(seed=seed)
        return Split((split.inputs[0] + 5 * F.one_hot(split.targets, 8),), split.targets)

    return Data(part(0), part(1), part(2))


@pytest.fixture(scope="module")
def knowing(apart: Data) -> CapturedGraph:
    return capture(trained_mlp(apart.train), (apart.train.inputs[0][:2],))


def told(graph: CapturedGraph, data: Data, settings: FinetuneSettings, target=None) -> tuple:
    messages: list[str] = []
    result = finetune(
        graph,
        data,
        target or {"params": 0.6},
        settings=settings,
        on_event=lambda event: messages.append(event.message) if event.stage == DECIDED else None,
    )
    return result, messages


def width(result) -> int:
    return result.small.state()["0.weight"].shape[0]


class TestRuns:
    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("method", ["l0", "magnitude", "gradual-magnitude"])
    def test_units_fall_silent_and_leave(self, knowing, apart, method):
        settings = replace(QUICK, method=method, epochs=12, learning_rate=0.02)
        plain, _ = told(knowing, apart, settings)
        result, messages = told(knowing, apart, replace(settings, activation_l1=0.3))
        assert width(result) < width(plain)
        assert messages[-1].startswith(
            f"Removed {width(plain) - width(result)} units that never fired on the 256 samples"
        )
        call = Call(apart.test.take(slice(0, 50)).args)
        assert verify(result.small, masked(result.folded, result.plan), inputs=[call]).max_relative < 1e-6
        assert result.last.state()["0.weight"].shape == result.small.state()["0.weight"].shape
        assert result.best_evaluation.metric > 0.95

    def test_with_gates_on_single_weights_too(self, knowing, apart):
        settings = replace(QUICK, granularity="both", epochs=12, activation_l1=0.3, learning_rate=0.02)
        result, messages = told(knowing, apart, settings)
        assert messages[-1].startswith("Removed ")
        call = Call(apart.test.take(slice(0, 50)).args)
        assert verify(result.small, masked(result.folded, result.plan), inputs=[call]).max_relative < 1e-6

    def test_where_single_weights_go_alone_no_unit_leaves(self, graph, data):
        result, _ = told(graph, data, replace(QUICK, granularity="weights", activation_l1=0.3))
        assert width(result) == 16

    def test_units_that_have_to_stay_do(self, knowing, apart):
        settings = replace(QUICK, method="magnitude", epochs=12, activation_l1=0.3, learning_rate=0.02)
        free, _ = told(knowing, apart, settings)
        held, _ = told(knowing, apart, replace(settings, min_density=0.5))
        assert width(free) < 8 <= width(held)

    def test_a_unit_that_the_validation_part_needs_stays_though_it_never_fired_in_training(self):
        """Two clouds in training; in validation a third one, which the last unit alone knows."""
        train, other = blobs(), blobs(seed=1)
        known = train.targets != 2
        two = Split((train.inputs[0][known],), train.targets[known])
        two.inputs[0][:, 2].clamp_(max=1.5)
        model = trained_mlp(two)
        with torch.no_grad():
            model[0].weight[15], model[0].bias[15] = torch.eye(8)[2] * 10, -20.0
            model[2].weight[:, 15] = torch.tensor([-5.0, -5.0, 5.0])
        graph = capture(model, (two.inputs[0][:2],))
        settings = replace(QUICK, epochs=2, learning_rate=1e-6, activation_l1=1e-6, method="magnitude")
        result, messages = told(graph, Data(two, other, other), settings, {"params": 0.999})
        assert messages == [
            messages[0],
            "No unit is removed for never firing.",
        ]
        assert messages[0].startswith("1 unit that never fired on the training part may fire elsewhere, and stays: ")
        assert result.small.state()["2.weight"][:, -1].tolist() == pytest.approx([-5.0, -5.0, 5.0], abs=0.5)


class TestRefusals:
    def test_a_model_without_rectifiers(self, data):
        graph = capture(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), (data.train.inputs[0][:2],))
        with pytest.raises(InputError) as error:
            finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, activation_l1=0.1))
        assert str(error.value) == (
            "activation_l1: the model has no ReLU, or other function that is zero on a half-line, behind which a unit "
            "could be removed. Nothing was changed. Leave --activation-l1 out."
        )

    def test_without_training(self):
        with pytest.raises(InputError) as error:
            FinetuneSettings(activation_l1=0.1, epochs=0)
        assert str(error.value) == (
            "activation_l1=0.1 with epochs=0: activations are penalised in training, but there is none. Nothing was "
            "changed. Pass --epochs 1 or more, or omit --activation-l1."
        )

    def test_a_strength_below_zero(self):
        with pytest.raises(InputError) as error:
            FinetuneSettings(activation_l1=-1.0)
        assert str(error.value) == "activation_l1=-1.0: expected at least 0. Nothing was changed."
