"""The training loop on problems small enough to read: what it promises, and how it fails."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from clouds import QUICK, Scaled, blobs, trained_mlp
from torch import Tensor, nn

from l0compress.data import Batch, Data, Split, StreamSplit
from l0compress.errors import DataError, DivergedError, InputError, L0Error, TargetError
from l0compress.gates.reach import smallest_cost
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.groups import find_groups
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.resource import Counted
from l0compress.training.faults import diverged
from l0compress.training.finetune import FinetuneResult, finetune
from l0compress.training.methods.magnitude import magnitude_scores
from l0compress.training.settings import METHOD_NAMES, FinetuneSettings, GateSettings
from l0compress.verification.calls import Call
from l0compress.verification.equality import verify


@pytest.fixture(scope="module")
def result(graph: CapturedGraph, data: Data) -> FinetuneResult:
    return finetune(graph, data, {"params": 0.4}, settings=QUICK)


def state_of(graph: CapturedGraph) -> dict[str, Tensor]:
    return graph.state()


def test_the_small_model_is_within_the_budget_and_uses_it(graph, result):
    dense, small = cost(graph).params, cost(result.small).params
    assert 0.9 * 0.4 * dense < small <= 0.4 * dense
    assert small == sum(parameter.numel() for parameter in result.small.module().parameters())


def test_the_small_model_still_knows_the_task(result):
    assert result.dense_evaluation.metric > 0.9
    assert result.best_evaluation.metric > result.dense_evaluation.metric - 0.05


def test_the_small_model_equals_the_masked_dense_one_with_the_same_weights(result, data):
    call = Call(data.test.take(slice(0, 50)).args)
    assert verify(result.small, masked(result.folded, result.plan), inputs=[call]).max_relative < 1e-6


def test_the_plan_speaks_of_the_dense_graph(graph, result):
    assert result.plan.groups.graph is graph or set(result.plan.parameter_keeps()) == set(graph.state())
    assert result.plan.cost == cost(result.small)


def test_the_model_that_went_in_is_unchanged(data):
    model = trained_mlp(data.train)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = capture(model, (data.train.inputs[0][:2],))
    finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, epochs=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state().items())


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(graph, data, result):
    torch.manual_seed(123)
    again = finetune(graph, data, {"params": 0.4}, settings=QUICK)
    other = finetune(graph, data, {"params": 0.4}, settings=replace(QUICK, seed=1))
    first = result.small.state()
    assert all(torch.equal(tensor, first[name]) for name, tensor in again.small.state().items())
    assert torch.equal(again.plan.keep, result.plan.keep)
    assert any(not torch.equal(tensor, again.last.state()[name]) for name, tensor in other.last.state().items()
               if tensor.shape == again.last.state()[name].shape)  # fmt: skip


def test_the_global_random_state_is_left_as_it_was(graph, data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, epochs=2))
    assert torch.equal(torch.rand(3), expected)


def test_events_close_every_epoch_once_and_can_be_written_as_json(graph, data):
    events = []
    result = finetune(graph, data, {"macs": 0.5}, settings=QUICK, on_event=events.append)
    closed = [event for event in events if event.epoch_done]
    assert [(event.stage, event.epoch) for event in closed] == [
        ("dense", 0), ("gates", 1), ("gates", 2), ("finetune", 3), ("finetune", 4), ("finetune", 5), ("finetune", 6)
    ]  # fmt: skip
    assert result.history == tuple(closed[1:])
    assert all(event.metric is not None and event.metric_name == "accuracy" for event in closed)
    assert closed[-1].seconds_left == pytest.approx(0, abs=1e-6)
    assert closed[-1].density == pytest.approx(cost(result.small).macs / cost(graph).macs)
    for event in closed:
        assert json.loads(json.dumps(event.row(), allow_nan=False)) == event.row()


def test_best_is_the_latest_of_the_best_validation_epochs(result):
    final = [event for event in result.history if event.stage == "finetune"]
    best = max(event.metric for event in final)
    if result.best_epoch:
        latest = max(index for index, event in enumerate(final, 1) if event.metric == best)
        assert (result.best_epoch, result.best_evaluation.metric) == (latest, best)
    assert result.last_evaluation.metric == final[-1].metric


@pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
def test_every_unit_is_kept(graph, data, unit):
    result = finetune(graph, data, {unit: 0.5}, settings=replace(QUICK, epochs=3))
    assert cost(result.small).get(unit) <= 0.5 * cost(graph).get(unit)


@pytest.mark.parametrize("target", [{"penalty": 1e-3}, {"aic": 1}, {"bic": 1}])
def test_fixed_penalties_need_no_target(graph, data, target):
    fast = replace(QUICK, epochs=12, gates=GateSettings(learning_rate=0.3))
    result = finetune(graph, data, target, settings=fast)
    assert cost(result.small).params < cost(graph).params
    assert all(event.violation == 0 for event in result.history)


@pytest.mark.parametrize("changes", [{"optimizer": "sgd", "learning_rate": 0.05}, {"bf16": True}, {"clip": None}])
def test_other_ways_to_train_reach_the_budget_too(graph, data, changes):
    result = finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, **changes))
    assert cost(result.small).params <= 0.5 * cost(graph).params
    assert result.last_evaluation.metric > 0.8
    assert all(parameter.dtype == torch.float32 for parameter in result.small.module().parameters())


def test_without_labels_the_dense_model_is_the_only_teacher(graph):
    data = Data(blobs(labels=False), blobs(labels=False, seed=1))
    result = finetune(graph, data, {"params": 0.5}, settings=QUICK)
    # Agreement with the dense model's classes.
    assert result.dense_evaluation.metric == 1
    assert result.last_evaluation.metric > 0.9


def test_without_labels_and_without_a_teacher_there_is_nothing_to_learn_from(graph):
    data = Data(blobs(labels=False), blobs(labels=False, seed=1))
    with pytest.raises(DataError) as error:
        finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, distill=False))
    assert str(error.value) == (
        "Distillation is off and the data has no labels: there is nothing to learn from. Nothing was changed. "
        "Give data with labels, or leave distillation on."
    )


def test_a_regression_is_compressed_whatever_the_scale_of_its_targets():
    inputs = blobs().inputs[0]
    plain = Split((inputs,), inputs[:, 0] - 2 * inputs[:, 1])
    model = trained_mlp(plain, out=1)
    scaled = nn.Sequential(model, Scaled(1e5))
    plain_errors = []
    for network, split in ((model, plain), (scaled, Split((inputs,), plain.targets * 1e5))):
        graph = capture(network, (inputs[:2],))
        result = finetune(graph, Data(split, split), {"params": 0.5}, settings=replace(QUICK, epochs=12))
        assert result.last_evaluation.metric_name == "loss"
        plain_errors.append(result.last_evaluation.metric)
    # The metric is the share of the variance left unexplained.
    assert plain_errors[0] < 0.1
    assert plain_errors[1] == pytest.approx(plain_errors[0], rel=0.5, abs=0.02)


def test_a_loss_of_the_users_own_is_called_with_outputs_and_targets(graph, data):
    def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=0.1)

    result = finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, loss=smoothed))
    assert result.last_evaluation.metric_name == "loss"
    assert result.last_evaluation.loss < 1


def test_streamed_batches_train_too(graph, data):
    inputs, targets = data.train.inputs[0], data.train.targets
    stream = StreamSplit([(inputs[i : i + 32], targets[i : i + 32]) for i in range(0, 256, 32)])
    result = finetune(graph, Data(stream, data.val), {"params": 0.5}, settings=QUICK)
    assert cost(result.small).params <= 0.5 * cost(graph).params


def test_augmentation_sees_training_batches_only_and_the_same_ones_for_the_same_seed(graph, data):
    seen: list[list[float]] = [[], []]

    def jitter(log: list[float]):
        def apply(batch: Batch, generator: torch.Generator) -> Batch:
            noise = torch.randn(batch.args[0].shape, generator=generator) / 10
            log.append(float(noise.sum()))
            return Batch((batch.args[0] + noise,), {}, batch.targets)

        return apply

    for log in seen:
        finetune(graph, replace(data, augment=jitter(log)), {"params": 0.5}, settings=replace(QUICK, epochs=2))
    assert seen[0] == seen[1]
    # 8 batches an epoch, two epochs, and the batches that BatchNorm statistics would be measured on.
    assert len(seen[0]) >= 16


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(graph, data):
    def diverging(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) * math.nan

    with pytest.raises(L0Error) as error:
        finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, loss=diverging))
    assert str(error.value) == (
        "The loss became nan at step 1 of epoch 1. Every layer's output is finite: it arises in the loss itself. "
        "Training stopped. Lower the learning rate (--lr) or clip gradients harder (--clip), or look for extreme "
        "values in the data. A model that divides by flat inputs, or takes their logarithm, needs "
        "FinetuneSettings(input_dropout=0): some are set to zero in training."
    )


class Rooted(nn.Module):
    """Takes the root of what may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).sqrt())


def test_what_breaks_down_in_a_model_that_is_called_by_keywords_is_named_too():
    inputs = {"x": blobs().inputs[0]}
    graph = capture(Rooted(), (), kwargs={"x": inputs["x"][:2]})
    told = diverged(math.nan, "step 1 of epoch 1", graph.module(), Batch((), inputs))
    assert "Node 'sqrt', which reads 'first.weight', is the first whose output is not finite." in str(told)


@pytest.mark.parametrize("method", ["l0", "fisher"])
def test_a_model_whose_outputs_are_not_finite_is_not_scored(data, method):
    graph = capture(Rooted(), (data.train.inputs[0][:2],))
    with pytest.raises(DivergedError) as error:
        finetune(graph, data, {"params": 0.5}, settings=replace(QUICK, method=method))
    assert str(error.value) == (
        "The model's output on the training part, or its gradient, is not finite, so nothing can be scored. Nothing "
        "was changed. Look for values in data or weights that are not finite."
    )


def test_targets_out_of_reach_are_refused_before_anything_is_trained(graph, data):
    events = []
    with pytest.raises(TargetError, match="cannot be reached"):
        finetune(graph, data, {"params": 0.001}, settings=QUICK, on_event=events.append)
    with pytest.raises(
        TargetError,
        match="Unknown target 'flops': expected one of params, macs, bytes, int8_bytes, latency, penalty, aic and bic",
    ):
        finetune(graph, data, {"flops": 0.5}, settings=QUICK, on_event=events.append)
    with pytest.raises(TargetError, match=r"Target macs=0\.001: at most 0 MACs cannot be reached"):
        finetune(graph, data, {"params": 0.5, "macs": 0.001}, settings=QUICK, on_event=events.append)
    with pytest.raises(
        TargetError,
        match=r"'aic' is a penalty in place of a budget, so no target can stand beside it\. .* Omit aic, or",
    ):
        finetune(graph, data, {"params": 0.5, "aic": 1}, settings=QUICK, on_event=events.append)
    assert events == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs=-1: expected at least 0. Nothing was changed."),
        (
            {"method": "lottery"},
            f"method='lottery': expected one of {', '.join(METHOD_NAMES)}. Nothing was changed.",
        ),
        ({"batch_size": 0}, "batch_size=0: expected at least 1. Nothing was changed."),
        ({"learning_rate": math.nan}, "learning_rate=nan: expected a finite number above 0. Nothing was changed."),
        (
            {"optimizer": "lion"},
            "optimizer='lion': expected one of adamw, sgd, or PACKAGE.MODULE:FUNCTION. Nothing was changed.",
        ),
        ({"clip": 0.0}, "clip=0.0: expected a finite number above 0. Nothing was changed."),
        ({"input_dropout": 1.0}, "input_dropout=1.0: expected 0 or more and below 1. Nothing was changed."),
        ({"epochs": 2.5}, "epochs=2.5: expected an integer. Nothing was changed."),
        ({"bf16": 1}, "bf16=1: expected true or false. Nothing was changed."),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError) as error:
        FinetuneSettings(**changes)
    assert str(error.value) == message


def test_constants_of_the_gated_phase_are_checked_as_in_a_file():
    with pytest.raises(InputError) as error:
        GateSettings(share=1.5)
    assert str(error.value) == "share=1.5: expected between 0 and 1. Nothing was changed."
    assert GateSettings(many_steps=0).are_many(1)


class TestMagnitude:
    def test_it_meets_the_same_budget_in_the_same_number_of_epochs(self, graph, data):
        result = finetune(graph, data, {"params": 0.4}, settings=replace(QUICK, method="magnitude"))
        assert 0.9 * 0.4 * cost(graph).params < cost(result.small).params <= 0.4 * cost(graph).params
        assert len(result.history) == QUICK.epochs

    def test_it_removes_the_smallest_norms_of_each_group(self, graph):
        from l0compress.graph.groups import find_groups

        groups = find_groups(graph)
        scores = magnitude_scores(groups)
        state = graph.state()
        (hidden,) = [group for group in groups.groups if group.kind == "channels"]
        norms = (
            state["0.weight"].square().sum(1) + state["0.bias"].square() + state["2.weight"].square().sum(0)
        ).sqrt()
        assert torch.allclose(scores[list(hidden.moves)].float(), norms / norms.mean(), rtol=1e-5)


class Residual(nn.Module):
    """A stem, a branch of 16 hidden units with batch norm around it, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 6), nn.Linear(6, 3)
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6, bias=False)
        self.norm, self.last = nn.BatchNorm1d(16), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.last(self.down(F.relu(self.norm(self.up(x)))))))


@pytest.mark.mostly_slow
@pytest.mark.parametrize("method", ["l0", "fisher", "magnitude"])
def test_a_branch_that_the_budget_has_no_room_for_vanishes_and_what_is_left_of_it_trains(data: Data, method) -> None:
    torch.manual_seed(0)
    graph = capture(Residual(), (data.train.inputs[0][:2],))
    groups = find_groups(graph)
    target = smallest_cost(Counted(groups, "params"))
    settings = replace(QUICK, epochs=2, method=method)
    result = finetune(graph, data, {"params": (target + 0.5) / cost(graph).params}, settings=settings)
    assert result.plan.kept()["up channels"] == []
    assert cost(result.small).params == target
    assert set(state_of(result.small)) == {
        *("stem.weight", "stem.bias", "head.weight", "head.bias"),
        *("last.weight", "last.bias", "last.running_mean", "last.running_var"),
    } | {name for name in state_of(result.small) if "inputs" in name}
    assert not torch.equal(state_of(result.small)["last.bias"], state_of(graph)["last.bias"])
