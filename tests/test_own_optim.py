"""Optimizers and schedulers of the user's own: made by factories, in both phases, gone on with bit for bit."""

from __future__ import annotations

from pathlib import Path

import own_optimizers
import pytest
import torch
from conftest import run_cli
from run_folders import Killed, dying_at, hashes, request
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from l0compress.errors import InputError
from l0compress.pipeline.requests import request_of
from l0compress.pipeline.training_run import finetune_run, resume_run
from l0compress.training.optim import carry_state_, schedule_for, set_learning_rate_, weight_optimizer
from l0compress.training.own_optim import load_plain_state_, own_rates, plain_state
from l0compress.training.settings import FinetuneSettings


def parameters() -> dict[str, nn.Parameter]:
    return {"w": nn.Parameter(torch.ones(4, 3)), "b": nn.Parameter(torch.ones(4))}


def weights_of(run: str) -> str:
    return hashes(run)["small.pt2"]


class TestRuns:
    @pytest.mark.slow
    @pytest.mark.usefixtures("folder")
    def test_a_factory_of_the_default_gives_the_bits_of_the_default(self, whole: dict[str, str]) -> None:
        finetune_run(request("own", optimizer="own_optimizers:fused_adamw"))
        assert weights_of("own") == whole["small.pt2"]

    @pytest.mark.slow
    @pytest.mark.usefixtures("folder")
    def test_a_run_with_an_optimizer_and_a_scheduler_goes_on_to_the_same_bits(self) -> None:
        own = {"optimizer": "own_optimizers:Counting", "scheduler": "own_optimizers:one_cycle"}
        finetune_run(request("whole-own", **own))
        for closed in (0, 1, 2):
            name = f"killed-{closed}"
            with pytest.raises(Killed):
                finetune_run(request(name, **own), on_event=dying_at(closed))
            resume_run(Path(name))
            assert weights_of(name) == weights_of("whole-own")

    @pytest.mark.usefixtures("folder")
    def test_the_command_line_refuses_before_training_and_leaves_no_folder(self) -> None:
        outcome = run_cli(
            "finetune", "mlp.pt2", "--data", "blobs.npz", "--target", "params=0.6", "--epochs", "2", "-o", "run",
            "--optimizer", "own_optimizers:no_optimizer",
        )  # fmt: skip
        assert outcome.exit_code == 2 and not Path("run").exists()
        assert "--optimizer 'own_optimizers:no_optimizer' returned str, not a torch.optim.Optimizer." in outcome.stderr

    def test_names_are_kept_in_a_configuration_file(self) -> None:
        given = {"model": "m.pt2", "data": "digits", "target": "macs=0.5", "optimizer": "torch.optim:NAdam"}
        assert request_of(request_of(given).values()).finetune_settings().optimizer == "torch.optim:NAdam"


class TestRates:
    def test_a_schedule_that_is_the_cosine_is_the_default(self) -> None:
        own = schedule_for(FinetuneSettings(scheduler=own_optimizers.the_cosine), 0.1, 7)
        named = schedule_for(FinetuneSettings(), 0.1, 7)
        assert [own(step / 7) for step in range(7)] == [named(step / 7) for step in range(7)]

    def test_rates_are_those_of_the_scheduler_step_by_step(self) -> None:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        scheduler, expected = own_optimizers.one_cycle(optimizer, 9), []
        for _ in range(9):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step() if len(expected) < 9 else None
        assert own_rates("own_optimizers:one_cycle", learning_rate=1.0, num_steps=9) == tuple(expected)

    def test_a_group_with_a_rate_of_its_own_keeps_its_share(self) -> None:
        def two_rates(groups: list[dict], lr: float) -> torch.optim.Optimizer:
            return torch.optim.SGD([{**groups[0], "lr": lr / 10}, groups[1]], lr=lr)

        optimizer = weight_optimizer(parameters(), two_rates, learning_rate=1.0, weight_decay=0.0)
        set_learning_rate_(optimizer, 0.5, highest=1.0)
        assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]

    def test_what_waits_for_a_metric_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"^--scheduler <lambda> returned ReduceLROnPlateau, which does not"):
            own_rates(lambda optimizer, _: ReduceLROnPlateau(optimizer), learning_rate=1.0, num_steps=3)


class TestState:
    def test_plain_values_come_back(self) -> None:
        before, after = parameters(), parameters()
        one = weight_optimizer(before, own_optimizers.Counting, learning_rate=0.1, weight_decay=0.0)
        for parameter in before.values():
            parameter.grad = torch.ones_like(parameter)
        one.step()
        other = weight_optimizer(after, own_optimizers.Counting, learning_rate=0.1, weight_decay=0.0)
        load_plain_state_(other, after, plain_state(one, before))
        assert [other.state[p]["count"] for p in after.values()] == [1, 1]
        assert [(group["steps"], group["pair"]) for group in other.param_groups] == [(1, (1, 2))] * 2

    def test_what_cannot_be_kept_is_said(self) -> None:
        held = parameters()
        optimizer = weight_optimizer(held, own_optimizers.Counting, learning_rate=0.1, weight_decay=0.0)
        optimizer.state[held["w"]]["net"] = nn.Linear(1, 1)
        with pytest.raises(InputError, match=r"^Counting keeps 'net' as Linear, which a run could not go on with\."):
            plain_state(optimizer, held)

    def test_factored_state_of_a_cut_parameter_begins_anew(self) -> None:
        whole, part = parameters(), {"w": nn.Parameter(torch.ones(2, 3)), "b": nn.Parameter(torch.ones(2))}
        old, new = (
            weight_optimizer(held, torch.optim.Adafactor, learning_rate=0.1, weight_decay=0.0) for held in (whole, part)
        )
        for parameter in whole.values():
            parameter.grad = torch.ones_like(parameter)
        old.step()
        keep = torch.tensor([0, 2])
        carry_state_(new, old, {n: (whole[n], part[n]) for n in whole}, {"w": (keep, None), "b": (keep,)})
        assert part["w"] not in new.state and new.state[part["b"]]["variance"].shape == (2,)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "own_optimizers:half_of_them",
            "--optimizer 'own_optimizers:half_of_them' returned an optimizer of 1 param",
        ),
        (own_optimizers.broken, "--optimizer broken failed when it was called (ValueError: 2 groups at 0.1)."),
        ("own_optimizers:nothing", "--optimizer 'own_optimizers:nothing': module 'own_optimizers' has no 'nothing'."),
    ],
)
def test_a_factory_that_does_not_do_is_refused(factory, message: str) -> None:
    with pytest.raises(InputError) as raised:
        weight_optimizer(parameters(), factory, learning_rate=0.1, weight_decay=0.0)
    assert str(raised.value).startswith(message)
