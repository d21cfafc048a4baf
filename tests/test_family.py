"""A family: several small models from one run, each cut from the one before, each what a run of its own would leave."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_resume import CASES, QUICK, Case, Shelf, assert_same, conv_net, images, in_memory, mlp, own_generator, vectors
from torch import nn

import l0compress as l0
from l0compress.data import Data
from l0compress.errors import InputError, PlanError, TargetError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.training.events import ProgressEvent
from l0compress.training.family import Member, finetune_family
from l0compress.training.family_targets import epochs_of_members, family_of, legs_of, parse_targets
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings
from l0compress.training.state_dicts import under
from l0compress.verification.equality import verify

THREE = parse_targets("params=0.8,0.5,0.3")
SHORT = replace(QUICK, epochs=6)


class TestTargets:
    @pytest.mark.parametrize("given", ["macs=0.8,0.4", "macs=0.8, macs=0.4", ["macs=0.8", {"macs": 0.4}]])
    def test_they_are_written_in_several_ways(self, given: object) -> None:
        assert [str(target) for target in family_of(given)] == ["macs=0.8", "macs=0.4"]

    @pytest.mark.parametrize(
        "given, said",
        [
            (
                "macs=0.8,params=0.4",
                "Target 'macs=0.8,params=0.4': the members of a family have one unit, but here are macs and params. "
                "Nothing was changed. Write for example macs=0.8,0.4.",
            ),
            ([], "A family needs a target. Nothing was changed. Write for example 'macs=0.8,0.4'."),
            ("macs=0.8,", "Target 'macs=': '' is not a positive number. Write a fraction such as macs=0.5, or a count "
             "such as macs=26500 or macs=12M."),
        ],
    )  # fmt: skip
    def test_what_is_no_family_is_refused(self, given: object, said: str) -> None:
        with pytest.raises(TargetError) as caught:
            family_of(given)
        assert str(caught.value) == said

    def test_shares_and_counts_are_put_in_order_by_what_they_allow(self, graph: CapturedGraph) -> None:
        # 8 * 16 + 16 + 16 * 3 + 3 parameters
        legs = legs_of(graph, parse_targets("params=0.25,150,0.5"), FinetuneSettings())
        assert [(leg.name, leg.goal.limit) for leg in legs] == [
            ("params=150", 150), ("params=0.5", 97), ("params=0.25", 48)
        ]  # fmt: skip

    def test_the_same_budget_twice_is_refused(self, graph: CapturedGraph) -> None:
        with pytest.raises(TargetError) as caught:
            legs_of(graph, parse_targets("params=0.5,0.5001"), FinetuneSettings())
        assert str(caught.value) == (
            "Targets params=0.5 and params=0.5001 both allow 97 of 195. Nothing was changed. Name each member once."
        )


class TestEpochs:
    def test_four_members_take_less_than_one_and_a_half_runs_and_the_smallest_takes_most(self) -> None:
        for epochs in (6, 24, 48, 100):
            shares = epochs_of_members([0.8, 0.6, 0.4, 0.25], FinetuneSettings(epochs=epochs))
            assert 1.4 * epochs - 1 < sum(shares) <= 1.4 * epochs
            assert shares == sorted(shares)

    def test_a_leg_gets_epochs_for_what_it_adds_to_a_power_of_the_depth(self) -> None:
        # 1, 2 and 3 halvings: of 38 epochs 1, 2^1.5 - 1 and 3^1.5 - 2^1.5 parts of 3^1.5.
        assert epochs_of_members([0.5, 0.25, 0.125], FinetuneSettings(epochs=30)) == [7, 14, 17]

    def test_without_training_no_member_has_epochs(self) -> None:
        assert epochs_of_members([0.5, 0.25], FinetuneSettings(epochs=0)) == [0, 0]

    def test_gates_have_an_epoch_of_their_own_in_each_member_where_there_are_enough(self) -> None:
        shares = [0.8, 0.6, 0.4, 0.2]
        assert epochs_of_members(shares, FinetuneSettings(epochs=6)) == [2, 2, 2, 2]
        assert epochs_of_members(shares, FinetuneSettings(epochs=5)) == [1, 1, 1, 4]
        assert epochs_of_members(shares, FinetuneSettings(epochs=6, method="fisher")) == [1, 1, 2, 4]

    @pytest.mark.parametrize("method", ["l0", "fisher"])
    def test_too_few_epochs_are_refused_with_how_many_are_enough(self, method: str) -> None:
        with pytest.raises(InputError) as caught:
            epochs_of_members([0.8, 0.6, 0.4, 0.2], FinetuneSettings(epochs=2, method=method))
        assert str(caught.value) == (
            "epochs=2 is too few for a family of 4: each member needs at least 1. Nothing was changed. "
            "Pass --epochs 3 or more, or --epochs 0, where a score decides without training."
        )
        assert epochs_of_members([0.8, 0.6, 0.4, 0.2], FinetuneSettings(epochs=3, method=method)) == [1, 1, 1, 1]


def family(case: Case, targets: str, shelf: Shelf | None = None) -> list[Member]:
    graph = case.graph
    random.seed(7)
    np.random.seed(7)
    members = finetune_family(graph, case.data(), parse_targets(targets), settings=case.settings, checkpoints=shelf)
    return list(members)


class Projected(nn.Module):
    """Cutting an LSTM's projection frees hidden units, which have no moves in the dense graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.cell, self.head = nn.LSTM(12, 10, proj_size=6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0][:, -1])


SEQUENCES = CASES["a recurrent layer"].data
FAMILIES = {
    "gates that start in the order of a score": (Case(mlp, in_memory(vectors), SHORT), "params=0.8,0.5,0.3"),
    "gates that start open": (CASES["a budget that is violated, a best epoch before the last"], "params=0.8,0.5"),
    "a score": (Case(conv_net, in_memory(images), replace(SHORT, method="fisher")), "macs=0.7,0.3"),
    "single weights": (
        Case(mlp, in_memory(vectors), replace(SHORT, granularity="weights")), "params=0.5,0.2"
    ),
    "single weights by magnitude": (
        Case(mlp, in_memory(vectors), replace(SHORT, granularity="weights", method="magnitude")), "params=0.5,0.2"
    ),
    "training towards sparsity": (
        Case(mlp, in_memory(vectors), replace(SHORT, method="proximal"), every=7), "params=0.8,0.5"
    ),
    "a search": (
        Case(mlp, in_memory(vectors), replace(SHORT, method="reinforce", trials=3), every=7), "params=0.8,0.5"
    ),
    "channels and single weights": (
        Case(conv_net, in_memory(images), replace(SHORT, granularity="both")), "params=0.5,0.2"
    ),
    "rounding as in int8": (
        Case(mlp, in_memory(vectors), replace(SHORT, quantization_aware=True)), "int8_bytes=0.8,0.5"
    ),
    "projections": (Case(Projected, SEQUENCES, replace(SHORT, method="fisher")), "params=0.7,0.5"),
    "a loader with a generator of its own": (Case(mlp, own_generator, SHORT), "params=0.7,0.4"),
    "no training": (Case(mlp, in_memory(vectors), replace(SHORT, epochs=0)), "params=0.8,0.5,0.3"),
}  # fmt: skip


QUICKEST = ("gates that start in the order of a score", "a score", "single weights", "projections")


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICKEST else [pytest.mark.slow]) for name in FAMILIES]
)
def test_every_member_keeps_to_its_budget_and_equals_the_masked_dense_model(name: str) -> None:
    case, targets = FAMILIES[name]
    graph, members = case.graph, family(case, targets)
    assert [member.goal.wanted for member in members] == list(parse_targets(targets))
    for goal, result in ((member.goal, member.result) for member in members):
        counted = nonzero_cost if result.plan.masks else cost
        assert counted(result.small).get(goal.unit) <= goal.limit < goal.dense == cost(graph).get(goal.unit)
        assert list(result.folded.state()) == list(graph.state())
        silenced = masked(result.folded, result.plan)
        assert verify(result.small, replace(result.folded, graph_module=silenced)).max_relative < 1e-5
        again = shrink(result.folded, result.plan)
        assert all(torch.equal(tensor, again.state()[key]) for key, tensor in result.small.state().items())


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["gates that start in the order of a score", "a score", "projections"])
def test_a_member_holds_nothing_that_the_one_before_has_not(name: str) -> None:
    keeps = [member.result.plan.keep for member in family(*FAMILIES[name])]
    # Projections: the leg begins with the dense shape again, so only that one may choose anew.
    assert name == "projections" or all(bool((a | ~b).all()) for a, b in pairwise(keeps))


def test_the_first_member_is_the_run_of_its_own_bit_for_bit() -> None:
    case, _ = FAMILIES["gates that start in the order of a score"]
    first = next(finetune_family(case.graph, case.data(), THREE, settings=case.settings))
    (leg, *_) = legs_of(case.graph, THREE, case.settings)
    alone = finetune(case.graph, case.data(), "params=0.8", settings=replace(case.settings, epochs=leg.settings.epochs))
    assert_same(first.result, alone)


def test_a_leg_begins_with_the_trained_weights_of_the_member_before() -> None:
    shelf = Shelf()
    members = family(*FAMILIES["a score"], shelf)
    last = shelf.read(len(shelf.kept) - 1)
    before = under("before.state", last)
    assert last["member"] == "macs=0.3" and before.keys() == members[0].result.small.state().keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in members[0].result.small.state().items())


def test_densities_are_those_of_the_dense_model() -> None:
    case, events = FAMILIES["gates that start in the order of a score"][0], list[ProgressEvent]()
    members = list(finetune_family(case.graph, case.data(), THREE, settings=case.settings, on_event=events.append))
    for member in members:
        share = cost(member.result.small).params / member.goal.dense
        own = [event for event in events if event.member == str(member.goal.wanted) and event.stage == "finetune"]
        assert own and all(event.density == pytest.approx(share) for event in own)
        assert member.result.history[-1].density == pytest.approx(share)
    assert [event.stage for event in events if event.stage == "dense"] == ["dense"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "no training"])
def test_from_every_state_the_end_is_the_same(name: str) -> None:
    case, targets = FAMILIES[name]
    shelf = Shelf()
    whole = family(case, targets, shelf)
    names = [str(member.goal.wanted) for member in whole]
    for position in range(2, len(shelf.kept), 11):
        state = shelf.read(position)
        left = family(case, targets, Shelf(state))
        assert [str(member.goal.wanted) for member in left] == names[names.index(state["member"]) :]
        for member, expected in zip(reversed(left), reversed(whole), strict=False):
            assert_same(member.result, expected.result)


@pytest.mark.slow
def test_in_the_last_leg_it_goes_on_too() -> None:
    case, targets = FAMILIES["gates that start in the order of a score"]
    shelf = Shelf()
    whole = family(case, targets, shelf)
    (again,) = family(case, targets, Shelf(shelf.read(len(shelf.kept) - 4)))
    assert_same(again.result, whole[-1].result)


def test_the_state_of_another_family_is_refused() -> None:
    case, targets = FAMILIES["a score"]
    shelf = Shelf()
    family(case, targets, shelf)
    with pytest.raises(PlanError) as caught:
        family(case, "macs=0.7,0.2", Shelf(shelf.read(len(shelf.kept) - 1)))
    assert str(caught.value) == (
        "The checkpoint is of member 'macs=0.3', but this family has macs=0.7, macs=0.2. Nothing was changed. Resume "
        "it with the targets that it began with."
    )


def test_in_one_call_from_python(data: Data, mlp: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    settings = replace(SHORT, method="fisher")
    family = l0.compress_family(mlp, data, target=[{"params": 0.8}, "params=0.6"], settings=settings)
    assert [(str(one.target), one.limit, one.reached <= one.limit) for one in family.members] == [
        ("params=0.8", 60, True), ("params=0.6", 45, True)
    ]  # fmt: skip
    assert all(one.test is not None and one.equality.max_relative < 1e-5 for one in family.members)
    assert repr(family).startswith("FamilyResult(val accuracy of dense: ")
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.state_dict().items())


def test_a_member_out_of_reach_is_refused_before_any_is_trained() -> None:
    case, events = FAMILIES["gates that start in the order of a score"][0], list[ProgressEvent]()
    targets = parse_targets("params=0.8,0.01")
    with pytest.raises(TargetError, match=r"^Target params=0\.01: at most 8 parameters cannot be reached\. "):
        next(finetune_family(case.graph, case.data(), targets, settings=case.settings, on_event=events.append))
    assert events == []


def test_compress_returns_one_model(data: Data, mlp: nn.Module) -> None:
    with pytest.raises(TargetError) as caught:
        l0.compress(mlp, data, target="params=0.8,0.6")
    assert str(caught.value) == (
        "Target 'params=0.8,0.6' names several members of a family, and compress returns one model. Nothing was "
        "changed. Call compress_family with the same arguments."
    )
