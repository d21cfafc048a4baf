"""Misuse of gates, budgets and plans: refused in one sentence that says what, where and the way out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from own_loop import trained
from torch import nn
from torch.optim.swa_utils import AveragedModel

import l0compress as l0
from l0compress.data import Data
from l0compress.errors import InputError, L0Error, NothingToPruneError, PlanError, TargetError
from l0compress.gates.attach import gate
from l0compress.training.budget import FixedPenalty

CAPTURE = "Capture the model first: graph = l0compress.capture(model, (example_input,))."
GATE = "Make one with gated = l0compress.gate(l0compress.capture(model, (example_input,)))."
NARROW = (
    "a gated network cannot be float16, which is too narrow for training. Nothing was changed. Use bfloat16, or keep "
    "float32 weights and run forward under torch.autocast."
)
RANGE = (
    "is out of range. A fraction of the dense model lies between 0 and 1 (such as macs=0.5); an absolute count is an "
    "integer of at least 100 (such as macs=26500)."
)


def mlp(width: int = 16) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def captured(model: nn.Module) -> l0.CapturedGraph:
    return l0.capture(model, (torch.zeros(2, 8),))


def gated_mlp(width: int = 16) -> Any:
    return l0.gate(captured(mlp(width)))


def plan_of(graph: l0.CapturedGraph) -> l0.KeepPlan:
    return l0.KeepPlan.random(l0.find_groups(graph))


def half_plan() -> l0.KeepPlan:
    return l0.KeepPlan.from_kept(l0.find_groups(captured(mlp())), {"0 channels": range(8)})


def stepped(optimizer: Callable[..., torch.optim.Optimizer], network: nn.Module) -> None:
    network(torch.ones(2, 8)).sum().backward()
    optimizer(network.parameters(), weight_decay=0.01).step()


def twice_backward() -> None:
    gated = l0.gate(captured(mlp()), granularity="weights")
    loss = gated(torch.ones(2, 8)).sum()
    loss.backward(retain_graph=True)
    loss.backward()


def in_evaluation() -> None:
    gated = gated_mlp()
    l0.Budget(gated.eval(), {"macs": 0.5}).penalty().backward()


# What somebody writes, and what they are told.
REFUSED: dict[str, tuple[Callable[[], Any], type[L0Error], str]] = {
    **{
        f"{verb.__name__} of a module": (
            lambda verb=verb: verb(mlp()),
            InputError,
            f"{verb.__name__} takes a captured graph, but this is Sequential. Nothing was changed. {CAPTURE}",
        )
        for verb in (l0.gate, l0.find_groups, l0.cost, l0.nonzero_cost)
    },
    **{
        f"{verb.__name__} of a module by a plan": (
            lambda verb=verb: verb(mlp(), half_plan()),
            InputError,
            f"{verb.__name__} takes a captured graph, but this is Sequential. Nothing was changed. {CAPTURE}",
        )
        for verb in (l0.shrink, l0.masked)
    },
    "gates on a gated network": (
        lambda: l0.gate(gated_mlp()),
        InputError,
        "the network already has gates. Nothing was changed. Train it as it is; to start again from its weights, "
        "write gate(gated.graph()).",
    ),
    "gates on a captured gated network": (
        lambda: l0.gate(captured(gated_mlp())),
        InputError,
        "this graph was captured from a network that already has gates. Nothing was changed. Capture the model "
        "itself; to start again from a gated network's weights, write gate(gated.graph()).",
    ),
    "nothing to prune": (
        lambda: l0.gate(l0.capture(nn.Softmax(1), (torch.zeros(2, 8),))),
        NothingToPruneError,
        "no channel of this model can be removed. Nothing was changed. What stays whole, and why: it has no parameters"
        ". A model needs at least one layer between its input and its output whose width only other layers see.",
    ),
    "a gated network in float16": (lambda: gated_mlp().half(), InputError, NARROW),
    "gates on a model in float16": (
        lambda: l0.gate(l0.capture(mlp().half(), (torch.zeros(2, 8).half(),))),
        InputError,
        NARROW,
    ),
    "inputs of another width": (
        lambda: gated_mlp()(torch.zeros(4, 7)),
        InputError,
        "input 'input' is float32 (4, 7), but the network takes float32 (any, 8). Nothing was changed. Give inputs of "
        "that shape, or capture the model with the differing sizes free.",
    ),
    "one input too many": (
        lambda: gated_mlp()(torch.zeros(4, 8), None),
        InputError,
        "the network was called with (float32 (4, 8), None), but takes input: float32 (any, 8). Nothing was changed. "
        "Call it as the model was called when it was captured.",
    ),
    "inputs in float64": (
        lambda: gated_mlp()(torch.zeros(4, 8).double()),
        InputError,
        "input 'input' is float64 (4, 8), but the network's weights are float32. Nothing was changed. Convert the "
        "input, x.to(torch.float32), or the network, gated.to(x.dtype).",
    ),
    "a budget on a module": (
        lambda: l0.Budget(mlp(), {"macs": 0.5}),
        InputError,
        f"Budget takes a gated network, but this is Sequential. Nothing was changed. {GATE}",
    ),
    "a budget on a network in DataParallel": (
        lambda: l0.Budget(nn.DataParallel(gated_mlp()), {"macs": 0.5}),
        InputError,
        "Budget takes a gated network, but this is DataParallel. Nothing was changed. Pass the network inside of it, "
        ".module.",
    ),
    "a budget on a compiled network": (
        lambda: l0.Budget(torch.compile(gated_mlp(), backend="eager"), {"macs": 0.5}),
        InputError,
        "Budget takes a gated network, but this is OptimizedModule. Nothing was changed. Pass the network inside of "
        "it, ._orig_mod.",
    ),
    "a budget of 50 MACs": (lambda: l0.Budget(gated_mlp(), {"macs": 50}), TargetError, f"Target 'macs=50' {RANGE}"),
    "a budget of 50 %, in percent": (
        lambda: l0.Budget(gated_mlp(), {"macs": 50.0}),
        TargetError,
        f"Target 'macs=50.0' {RANGE}",
    ),
    "a budget in one unit twice": (
        lambda: l0.Budget(gated_mlp(), {"macs": 0.5}, macs=0.6),
        TargetError,
        "There are two targets in one unit: macs=0.5 and macs=0.6. Nothing was changed. Leave one of them out.",
    ),
    "a budget in no unit": (
        lambda: l0.Budget(gated_mlp(), 0.5),
        TargetError,
        "The target is 0.5, but must be a unit with a number. Nothing was changed. Write for example 'macs=0.5'.",
    ),
    "a budget in a unit that is none": (
        lambda: l0.Budget(gated_mlp(), flops=0.5),
        TargetError,
        "Target 'flops=0.5': 'flops' is not a unit of a target. Supported units are params, macs, bytes, "
        "int8_bytes, latency.",
    ),
    "a penalty in evaluation mode": (
        in_evaluation,
        InputError,
        "the gated network is in evaluation mode, where gates are not sampled and learn nothing from the loss. "
        "Nothing was changed. Call gated.train() before training steps, and gated.eval() only to evaluate.",
    ),
    **{
        f"{optimizer.__name__} over all parameters": (
            lambda optimizer=optimizer: stepped(optimizer, gated_mlp()),
            InputError,
            f"{optimizer.__name__} decays gates (weight_decay=0.01), which pulls each of them half open, regardless "
            "of the budget. Nothing was changed. Make the optimizer from gated.param_groups(lr=...), which decays "
            "only weights.",
        )
        for optimizer in (torch.optim.AdamW, torch.optim.SGD)
    },
    "two backward passes through one call": (
        twice_backward,
        InputError,
        "the gates of single weights keep what they need for one backward pass, and this is the second through the "
        "same outputs. Nothing was changed. Call the network once for every backward().",
    ),
    "hardening a module": (
        lambda: l0.harden(mlp(), l0.Budget(gated_mlp(), {"macs": 0.5})),
        InputError,
        f"harden takes a gated network, but this is Sequential. Nothing was changed. {GATE}",
    ),
    "hardening an average": (
        lambda: l0.harden(AveragedModel(gated := gated_mlp()), l0.Budget(gated, {"macs": 0.5})),
        InputError,
        "harden takes a gated network, but this is AveragedModel. Nothing was changed. Pass the network inside of it, "
        ".module.",
    ),
    "hardening to a number": (
        lambda: l0.harden(gated_mlp(), 0.5),
        InputError,
        "harden takes the Budget that the gates were trained under, but this is float. Nothing was changed. Write "
        "budget = l0compress.Budget(gated, {'macs': 0.5}) before training.",
    ),
    "a plan of another model": (
        lambda: l0.shrink(captured(mlp()), plan_of(captured(nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(3, 3))))),
        PlanError,
        "the plan was made for another graph. Nothing was changed. Make it with find_groups(graph).",
    ),
    "a plan that was carried out already": (
        lambda: l0.shrink(l0.shrink(captured(mlp()), half_plan()), half_plan()),
        PlanError,
        "the plan was made for a graph whose '0.weight' has shape (16, 8), and here it has (8, 8). Nothing was "
        "changed. If this graph is the result of the plan, there is nothing left to do; otherwise make a plan with "
        "find_groups(graph).",
    ),
    "a wider network's plan": (
        lambda: gated_mlp().shrink(plan_of(captured(mlp(20)))),
        PlanError,
        "the plan was made for another network. Nothing was changed. Make it of this one: l0compress.harden(gated, "
        "budget).",
    ),
    "a budget in place of a plan": (
        lambda: (gated := gated_mlp()).shrink(l0.Budget(gated, {"macs": 0.5})),
        PlanError,
        "shrink takes a plan, but this is a Budget. Nothing was changed. Write gated.shrink(l0compress.harden(gated, "
        "budget)).",
    ),
}


@pytest.mark.filterwarnings("ignore::l0compress.errors.LostInCaptureWarning")  # the noise of gates
@pytest.mark.parametrize("misuse", REFUSED)
def test_it_is_refused_in_a_sentence(misuse):
    attempt, kind, message = REFUSED[misuse]
    with pytest.raises(kind) as error:
        attempt()
    assert type(error.value) is kind
    assert str(error.value) == message


@pytest.mark.parametrize("granularity", ["structured", "weights", "both"])
@pytest.mark.parametrize("penalty", [lambda g: l0.Budget(g, {"macs": 0.5}), lambda g: FixedPenalty.aic(g, 100)])
def test_gates_that_no_step_has_moved_are_not_hardened(graph, granularity, penalty):
    gated = l0.gate(graph, granularity=granularity, magnitude_slope=1.0)
    budget = penalty(gated)
    untouched = [gated, copy.deepcopy(gated), copy.deepcopy(gated).double(), AveragedModel(gated).module]
    untouched[1].load_state_dict(gated.state_dict())
    for network in untouched:
        with pytest.raises(TargetError) as error:
            l0.harden(network, budget)
        assert str(error.value) == (
            "the gates are at their initial values: no step has moved them, so hardening would remove at random. "
            "Nothing was changed. Train first, with an optimizer over gated.param_groups(lr=...) and budget.penalty() "
            "in the loss; to use the initial order, write harden(gated, budget, allow_untrained=True)."
        )


def test_a_budget_of_another_network_is_refused_and_that_of_a_copy_taken(graph, data: Data):
    gated, budget = trained(graph, data, steps=3)
    alike = graph.with_state({name: tensor + 1 for name, tensor in graph.state().items()})
    strangers = [l0.gate(captured(mlp(20))), l0.gate(alike), gate(graph, granularity="both")]
    for stranger in strangers:
        with pytest.raises(TargetError) as error:
            l0.harden(gated, l0.Budget(stranger, {"macs": 0.5}))
        assert str(error.value) == (
            "the budget (macs) belongs to a different network. Nothing was changed. Harden the network that the "
            "budget was made for, or make one for this network and train it."
        )
    again = l0.gate(graph.with_state(graph.state()))
    pairs = ((gated, budget), (copy.deepcopy(gated), budget), (gated, l0.Budget(again, {"macs": 0.5})))
    plans = [l0.harden(*pair) for pair in pairs]
    assert all(torch.equal(plan.keep, plans[0].keep) for plan in plans)


def test_a_hardened_plan_of_a_network_with_other_weights_is_refused(graph, data: Data):
    gated, budget = trained(graph, data, steps=3)
    other, _ = trained(graph.with_state({name: tensor * 2 for name, tensor in graph.state().items()}), data, steps=3)
    plan = l0.harden(gated, budget)
    with pytest.raises(PlanError, match=r"^the plan was made for another network\. Nothing was changed\."):
        other.shrink(plan)
    assert l0.cost(other.shrink(plan.decision())) == plan.cost


def test_hardening_and_gating_twice_is_the_same_twice(graph, data: Data):
    gated, budget = trained(graph, data, steps=3)
    first, second = l0.harden(gated, budget), l0.harden(gated, budget)
    assert torch.equal(first.keep, second.keep)
    assert not l0.gate(graph).has_moved()


def test_an_optimizer_without_decay_may_hold_everything(graph):
    gated = l0.gate(graph)
    gated(torch.ones(2, 8)).sum().backward()
    torch.optim.AdamW(gated.parameters(), weight_decay=0).step()
    assert gated.has_moved()


def test_gates_of_copies_are_not_decayed_either(graph):
    with pytest.raises(InputError, match=r"^AdamW decays gates \(weight_decay=0\.01\)"):
        stepped(torch.optim.AdamW, copy.deepcopy(l0.gate(graph, granularity="weights")))


def test_a_conversion_that_is_refused_changes_nothing(graph):
    gated = l0.gate(graph)
    before = copy.deepcopy(gated.state_dict())
    with pytest.raises(InputError):
        gated.to(torch.float16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in gated.state_dict().items())
    assert gated(torch.zeros(2, 8)).dtype is torch.float32
