"""The constraint: against closed-form optima, against torch's own Adam, and errors for targets that make no sense."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from l0compress.errors import TargetError
from l0compress.gates.attach import GatedNetwork, gate
from l0compress.graph.capture import capture
from l0compress.graph.groups.cost import cost
from l0compress.training.budget import Budget, FixedPenalty
from l0compress.training.multiplier import AscentSettings, Multiplier, cubic_ramp
from l0compress.training.targets import Target

HIDDEN = 8
DENSE = 4 * HIDDEN + HIDDEN + 2 * HIDDEN + 2


def small_network() -> GatedNetwork:
    """4 inputs, 8 hidden units, 2 outputs: 58 parameters; a hidden unit owns 7, two biases belong to nobody."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
    return gate(capture(model, (torch.zeros(2, 4),)))


def hidden_moves(gated: GatedNetwork) -> list[int]:
    (group,) = [group for group in gated.groups.groups if group.kind == "channels"]
    return list(group.moves)


def test_the_multiplier_ascends_as_torch_adam_does():
    violations = [0.7, 0.5, 0.9, 0.1, 0.05, 1.4]
    reference = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([reference], lr=0.05, maximize=True)
    multiplier = Multiplier(AscentSettings(learning_rate=0.05))
    for violation in violations:
        reference.grad = torch.tensor([violation], dtype=torch.float64)
        adam.step()
        multiplier.ascend_(violation)
        assert multiplier.value == pytest.approx(reference.item(), abs=1e-9)


def test_the_multiplier_restarts_without_momentum_once_the_constraint_holds():
    multiplier = Multiplier(AscentSettings(learning_rate=0.05))
    for _ in range(50):
        multiplier.ascend_(1.0)
    multiplier.ascend_(0.0)
    assert multiplier.value == 0
    multiplier.ascend_(1.0)
    assert multiplier.value == pytest.approx(0.05)


@given(st.lists(st.floats(-3, 3), max_size=40))
def test_the_multiplier_is_never_negative(violations):
    multiplier = Multiplier(AscentSettings())
    for violation in violations:
        multiplier.ascend_(violation)
        assert multiplier.value >= 0


@pytest.mark.slow
def test_a_constrained_quadratic_reaches_its_closed_form_solution():
    """Minimise sum (p - a)^2 / 2 subject to 2 + 7 sum p <= 30, so sum p <= 4: a projection onto a half-space."""
    gated = small_network()
    wanted = torch.linspace(0.4, 0.9, HIDDEN)
    expected = wanted - (wanted.sum() - 4) / HIDDEN
    hidden = hidden_moves(gated)
    with torch.no_grad():
        gated.gates.log_alpha.fill_(30.0)
        gated.gates.log_alpha[hidden] = 0.0
    others = torch.ones(gated.groups.num_moves, dtype=torch.bool)
    others[hidden] = False
    budget = Budget(gated, {"params": 30.5 / DENSE})
    optimizer = torch.optim.SGD([gated.gates.log_alpha], lr=0.2)
    tail = []
    for step in range(4000):
        probability = gated.gates.probability_nonzero()[hidden]
        loss = ((probability - wanted) ** 2).sum() / 2 + budget.penalty()
        optimizer.zero_grad()
        loss.backward()
        gated.gates.log_alpha.grad[others] = 0
        optimizer.step()
        budget.step()
        if step >= 3000:
            tail.append(probability.detach())
    assert torch.stack(tail).mean(0).sub(expected).abs().max() < 0.03
    assert budget.violation < 0.02


def test_a_constraint_that_does_not_bind_leaves_the_optimum_alone():
    gated = small_network()
    budget = Budget(gated, {"params": 0.999})
    with torch.no_grad():
        gated.gates.log_alpha.fill_(-1.0)
    budget.penalty()
    budget.step()
    assert budget.violation < 0
    assert budget.multiplier == 0
    assert budget.penalty().item() == 0


def test_the_violation_is_the_log_of_expected_cost_over_target():
    gated = small_network()
    budget = Budget(gated, {"params": 0.5})
    p = gated.gates.probability_nonzero()[0].item()
    expected = 4 * p * HIDDEN * p + HIDDEN * p + 2 * HIDDEN * p + 2
    assert budget.target == DENSE // 2
    assert budget.violation == pytest.approx(math.log(expected / (DENSE // 2)), abs=1e-6)
    assert budget.density == pytest.approx(expected / DENSE, abs=1e-6)


def test_the_target_falls_from_the_dense_cost_to_the_budget_along_the_ramp():
    gated = small_network()
    budget = Budget(gated, {"params": 0.5}, ramp_steps=4)
    targets = []
    for _ in range(6):
        targets.append(budget.target_now)
        budget.penalty()
        budget.step()
    assert targets == [cubic_ramp(DENSE, DENSE // 2, progress) for progress in (0, 0.25, 0.5, 0.75, 1, 1)]
    assert targets[0] == DENSE and targets[-1] == DENSE // 2


def test_the_penalty_pulls_gates_down_and_leaves_weights_alone():
    gated = small_network()
    budget = Budget(gated, {"macs": 0.5})
    budget.step()
    budget.penalty().backward()
    assert (gated.gates.log_alpha.grad > 0).all()
    assert all(parameter.grad is None for parameter in gated.weights().values())


@pytest.mark.parametrize("unit", ["params", "macs", "bytes", "int8_bytes"])
def test_every_unit_can_be_constrained(unit):
    gated = small_network()
    dense = gated.groups.cost_of(torch.ones(gated.groups.num_moves, dtype=torch.bool)).get(unit)
    budget = Budget(gated, {unit: 0.5})
    assert (budget.unit, budget.dense, budget.target) == (unit, dense, dense // 2)


@pytest.mark.parametrize(
    ("positional", "keywords"),
    [
        (({"macs": 0.5},), {}),
        ((), {"macs": 0.5}),
        (({"macs": 0.5},), {"params": None}),
        (("macs=0.5",), {}),
        ((), {"macs": np.float32(0.5)}),
    ],
)
def test_a_target_may_be_a_mapping_or_a_keyword(positional, keywords):
    budget = Budget(small_network(), *positional, **keywords)
    assert (budget.unit, budget.target) == ("macs", budget.dense // 2)


def test_a_target_may_be_what_was_read_before_and_its_count_is_taken_as_it_is():
    gated, wanted = small_network(), Target.of("macs=0.5")
    absolute = wanted.on(100)  # another model's cost
    assert Budget(gated, wanted).target == 24
    assert (Budget(gated, absolute).dense, Budget(gated, absolute).target) == (100, 50)


def test_earlier_spellings_of_a_budget_hold():
    now = Budget(small_network(), {"bytes": 0.5}).target
    assert {Budget(small_network(), bytes=0.5).target, Budget(small_network(), size_bytes=0.5).target} == {now}


def test_a_target_above_the_dense_cost_is_refused():
    with pytest.raises(TargetError) as error:
        Budget(small_network(), {"params": 100})
    assert str(error.value) == (
        "Target params=100: the model already has only 58 parameters, so there is nothing to remove. Nothing was "
        "changed. Ask for fewer than 58, or for a fraction such as params=0.5."
    )


def test_an_unreachable_target_names_the_smallest_share():
    with pytest.raises(TargetError) as error:
        Budget(small_network(), {"params": 0.05})
    # One input, one hidden unit: 1 + 1 + 2 + 2 parameters.
    assert str(error.value) == (
        "Target params=0.05: at most 2 parameters cannot be reached. With everything removed that can be removed, 6 "
        "of 58 stay (0.1034). Nothing was changed. Ask for params=0.105 or more."
    )
    assert Budget(small_network(), {"params": 0.105}).target == 6


def test_a_budget_names_at_least_one_unit():
    with pytest.raises(TargetError) as error:
        Budget(small_network())
    assert str(error.value) == (
        "A target names at least one of params, macs, bytes, int8_bytes and latency; given: none. Nothing was "
        "changed. Example: "
        "macs=0.5."
    )


def test_information_criteria_are_fixed_penalties_on_the_expected_parameters():
    gated = small_network()
    expected = gated.groups.expected_cost(gated.gates.probability_nonzero(), "params").item()
    aic, bic = FixedPenalty.aic(gated, 500), FixedPenalty.bic(gated, 500)
    # AIC / 2N = mean negative log-likelihood + k / N;  BIC / 2N = the same + k ln N / 2N.
    assert aic.penalty().item() == pytest.approx(expected / 500)
    assert bic.penalty().item() == pytest.approx(expected * math.log(500) / 1000)
    aic.step()
    assert aic.multiplier == 1 / 500
    assert aic.target is None and aic.violation == 0


def test_a_negative_penalty_is_refused():
    with pytest.raises(TargetError, match=r"Penalty -1\.0: a multiplier is a finite number, 0 or more"):
        FixedPenalty(small_network(), -1.0)


def test_five_lines_in_a_loop_of_ones_own_reach_the_budget(capsys):
    example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "own_training_loop.py"))
    small = example["main"](epochs=4)
    dense_macs = 64 * 128 + 128 * 64 + 64 * 10
    assert 0.97 * 0.3 * dense_macs < cost(small).macs <= 0.3 * dense_macs
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["dense", "small"]
