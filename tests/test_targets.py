"""Targets: how they are written, what they allow of a model, and one value from the flag to the budget."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from l0compress.errors import TargetError
from l0compress.graph import CapturedGraph, capture, cost
from l0compress.training.goals import Criterion, goal_for
from l0compress.training.targets import AbsoluteTarget, Target, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("macs=0.5", Target("macs", 0.5, True)),
        ("macs=.25", Target("macs", 0.25, True)),
        ("params=26500", Target("params", 26_500, False)),
        ("params=26.5k", Target("params", 26_500, False)),
        ("macs=12M", Target("macs", 12_000_000, False)),
        ("macs=1.8G", Target("macs", 1_800_000_000, False)),
        ("bytes=1MB", Target("bytes", 1_000_000, False)),
        ("bytes=4096", Target("bytes", 4_096, False)),
    ],
)
def test_what_can_be_asked_for(text: str, target: Target) -> None:
    assert parse_target(text) == target


@given(value=st.floats(0.001, 0.999))
def test_a_target_reads_back_as_it_is_written(value: float) -> None:
    target = Target("macs", round(value, 4), True)
    assert parse_target(str(target)) == target


@pytest.mark.parametrize("number", ["0", "1", "2", "2.5", "0.0", "1.0", "99"])
def test_a_number_that_is_neither_fraction_nor_plausible_count(number: str) -> None:
    with pytest.raises(TargetError, match=r"is out of range\. A fraction of the dense model lies between 0 and 1"):
        parse_target(f"macs={number}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macs", "Target 'macs' has no '='. Write a unit and a number, such as macs=0.5."),
        ("macs=half", "Target 'macs=half': 'half' is not a positive number."),
        ("macs=-0.5", "Target 'macs=-0.5': '-0.5' is not a positive number."),
        ("macs=12Q", "Target 'macs=12Q': unknown suffix 'Q'. Known suffixes are k, M and G."),
        (
            "flops=0.5",
            "Target 'flops=0.5': 'flops' is not a unit of a target. Supported units are params, macs, bytes, "
            "int8_bytes, latency.",
        ),
    ],
)
def test_a_malformed_target(text: str, message: str) -> None:
    with pytest.raises(TargetError, match="^" + re.escape(message)):
        parse_target(text)


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (0.0, "0.0"),
        (0, "0"),
        (2.0, "2.0"),
        (-0.5, "-0.5"),
        (1.0, "1.0"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (50, "50"),
    ],
)
def test_a_malformed_target_is_refused_in_the_words_of_the_command_line(wanted: float, shown: str) -> None:
    with pytest.raises(TargetError) as error:
        Target.of({"macs": wanted})
    assert str(error.value) == (
        f"Target 'macs={shown}' is out of range. A fraction of the dense model lies between 0 and 1 (such as "
        "macs=0.5); an absolute count is an integer of at least 100 (such as macs=26500)."
    )


@given(share=st.floats(0.001, 0.999), dense=st.integers(1, 10**9))
def test_a_fraction_allows_its_share_of_the_dense_cost_rounded_down(share: float, dense: int) -> None:
    limit = Target.of({"macs": share}).on(dense).limit
    assert limit <= share * dense < limit + 1


def test_a_count_has_to_be_below_the_dense_cost() -> None:
    assert Target.of({"params": 400}).on(401) == AbsoluteTarget(Target("params", 400, False), 401, 400)
    with pytest.raises(TargetError) as error:
        Target.of({"params": 400}).on(400)
    assert str(error.value) == (
        "Target params=400: the model already has only 400 parameters, so there is nothing to remove. Nothing was "
        "changed. Ask for fewer than 400, or for a fraction such as params=0.5."
    )


@pytest.fixture(scope="module")
def graph() -> CapturedGraph:
    return capture(nn.Linear(4, 25), (torch.zeros(2, 4),))


@pytest.mark.parametrize("unit", ["params", "macs", "bytes", "int8_bytes"])
def test_a_run_s_goal_is_a_count_of_its_model(graph: CapturedGraph, unit: str) -> None:
    dense = cost(graph).get(unit)
    goal = goal_for(graph, {unit: 0.5})
    assert goal == goal_for(graph, f"{unit}=0.5") == AbsoluteTarget(Target(unit, 0.5, True), dense, dense // 2)
    assert goal_for(graph, goal) is goal


@pytest.mark.parametrize(
    ("written", "name", "multiplier"),
    [
        ("penalty=1e-6", "penalty", 1e-6),
        ({"penalty": 1e-6}, "penalty", 1e-6),
        ("aic=1", "aic", 1 / 500),
        ({"bic": 1}, "bic", math.log(500) / 1000),
    ],
)
def test_a_fixed_penalty_is_a_goal_too(graph: CapturedGraph, written: str, name: str, multiplier: float) -> None:
    goal = goal_for(graph, written)
    assert isinstance(goal, Criterion) and goal.name == name
    assert goal.multiplier(500) == pytest.approx(multiplier)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("penalty=half", "Target 'penalty=half': 'half' is not a number. Nothing was changed. Write for "
         "example penalty=1."),
        ({"flops": 0.5}, "Unknown target 'flops': expected one of params, macs, bytes, int8_bytes, latency, "
        "penalty, aic and "
         "bic. Nothing was changed. Example: macs=0.5."),
        ({}, "A target names at least one of params, macs, bytes, int8_bytes, latency, penalty, aic and bic; given: "
        "none. "
         "Nothing was changed. Example: macs=0.5."),
        (0.5, "The target is 0.5, but must be a unit with a number. Nothing was changed. Write for example "
         "'macs=0.5'."),
    ],
)  # fmt: skip
def test_a_goal_that_nobody_can_reach_for(graph: CapturedGraph, target: str, message: str) -> None:
    with pytest.raises(TargetError) as error:
        goal_for(graph, target)
    assert str(error.value) == message
