"""Fixed penalties and norms beside learned gates: the terms against sums over all gates, and a run from end to end."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from clouds import QUICK, blobs, trained_mlp
from conftest import run_cli
from run_folders import Killed, dying_at, hashes
from torch import Tensor, nn

import l0compress as l0
from l0compress.data import Data
from l0compress.errors import InputError, PenaltyWarning, TargetError
from l0compress.gates.attach import GatedNetwork, gate
from l0compress.graph.capture import capture
from l0compress.pipeline.requests import request_of
from l0compress.pipeline.training_run import finetune_run, resume_run
from l0compress.training.expected_norms import ExpectedNorms, expected_power
from l0compress.training.gate_phase import GatePhase
from l0compress.training.penalty import FixedPenalty
from l0compress.training.problem import problem_of
from l0compress.training.settings import FinetuneSettings


def gated_of(granularity: str) -> GatedNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    gated = gate(capture(net, (torch.zeros(2, 2),)), granularity=granularity)
    with torch.no_grad():
        for parameter in gated.gate_parameters().values():
            parameter.copy_(torch.randn(parameter.shape))
    return gated


def by_enumeration(gated: GatedNetwork, power: int) -> float:
    """The sum over all states of the gates of moves of their probability times the norm of what is then left."""
    open_, total = gated.gates.probability_nonzero().detach().double(), 0.0
    single = {name: gates.probability_nonzero().detach() for name, gates in gated.weight_gates.items()}
    powers = {name: weight.detach().double().abs() ** power for name, weight in gated.weights().items()}
    first, second = (powers[name] * single.get(name, torch.ones(())) for name in ("0.weight", "2.weight"))
    (units,) = [list(group.moves) for group in gated.groups.groups if group.kind == "channels"]
    (inputs,) = [list(group.moves) for group in gated.groups.groups if group.kind == "inputs"]
    for state in product((0.0, 1.0), repeat=len(open_)):
        here = torch.tensor(state, dtype=torch.float64)
        chance = float((here * open_ + (1 - here) * (1 - open_)).prod())
        total += chance * float(here[units] @ first @ here[inputs] + (second @ here[units]).sum())
    return total


class TestExpectedNorms:
    @pytest.mark.parametrize("granularity", ["structured", "both"])
    @pytest.mark.parametrize("power", [1, 2])
    def test_they_are_the_expectation_over_all_states_of_the_gates(self, granularity: str, power: int):
        gated = gated_of(granularity)
        assert expected_power(gated, power).item() == pytest.approx(by_enumeration(gated, power), rel=1e-5)

    def test_of_single_weights_it_is_the_paper_s_closed_form(self):
        gated = gated_of("weights")
        closed = torch.zeros(())
        for name, weight in gated.weights().items():
            if weight.dim() > 1:
                gates = gated.weight_gates[name]
                # Equation 12: 1 - Q(0) = sigmoid(log alpha - beta log(-gamma / zeta)).
                shift = gates.temperature * math.log(0.1 / 1.1)
                closed = closed + (torch.sigmoid(gates.log_alpha - shift) * weight.square()).sum()
        assert ExpectedNorms(l2=0.3).of(gated).item() == pytest.approx(0.15 * closed.item(), rel=1e-6)

    def test_both_norms_are_added_with_their_strengths(self):
        gated = gated_of("structured")
        wanted = 0.2 / 2 * expected_power(gated, 2) + 0.7 * expected_power(gated, 1)
        assert ExpectedNorms(l2=0.2, l1=0.7).of(gated).item() == pytest.approx(wanted.item())

    def test_with_all_gates_open_the_slope_is_that_of_weight_decay(self):
        gated = gated_of("structured")
        with torch.no_grad():
            gated.gates.log_alpha.fill_(60.0)
        ExpectedNorms(l2=0.4).of(gated).backward()
        weight = gated.weights()["0.weight"]
        assert torch.allclose(weight.grad, 0.4 * weight)

    def test_large_weights_push_their_gates_shut_harder(self):
        gated = gated_of("weights")
        with torch.no_grad():
            gated.weights()["0.weight"].copy_(torch.tensor([[3.0, 1.0], [1.0, 1.0], [0.0, 1.0]]))
            gated.weight_gates["0.weight"].log_alpha.zero_()
        ExpectedNorms(l2=1.0).of(gated).backward()
        slope = gated.weight_gates["0.weight"].log_alpha.grad
        assert slope[0, 0].item() == pytest.approx(9 * slope[0, 1].item())
        assert slope[2, 0].item() == 0.0


class TestGatePhase:
    def phase(self, **changes: object) -> GatePhase:
        part = blobs(64)
        settings = replace(QUICK, epochs=3, **changes)
        problem = problem_of(capture(trained_mlp(part), (part.inputs[0][:2],)), Data(part, part), settings)
        gated = gate(problem.graph).train()
        return GatePhase(problem, gated, FixedPenalty(gated, 1e-3))

    def test_the_loss_is_the_paper_s_l0_and_l2_objective(self):
        phase = self.phase(l2=0.02)
        open_ = phase.gated.gates.probability_nonzero()
        squares: Tensor = 0.02 / 2 * expected_power(phase.gated, 2)
        wanted = 0.7 + 1e-3 * phase.gated.groups.expected_cost(open_, "params") + squares
        assert phase.regularized(torch.tensor(0.7)).item() == pytest.approx(wanted.item())

    @pytest.mark.parametrize(("changes", "decay"), [({}, 0.05), ({"l2": 0.02}, 0.0), ({"method": "hybrid"}, 0.0)])
    def test_the_norm_takes_the_place_of_weight_decay(self, changes: dict[str, object], decay: float):
        (matrices, _) = self.phase(**changes)._weights.param_groups
        assert matrices["weight_decay"] == decay

    def test_a_method_without_gates_has_nothing_to_weight_the_norm_by(self):
        with pytest.raises(InputError) as error:
            FinetuneSettings(method="fisher", l2=0.1)
        assert str(error.value) == (
            "l2=0.1 with method='fisher': the norm is weighted by how far gates are open, but no gates are learned. "
            "Nothing was changed. Pass --method l0 or hybrid, or omit it; for plain weight decay set weight_decay."
        )


RUN = ("finetune", "mlp.pt2", "--data", "blobs.npz", "--epochs", "3")


@pytest.mark.usefixtures("folder")
class TestRun:
    def test_a_criterion_in_place_of_a_target(self):
        outcome = run_cli(*RUN, "--penalty", "bic", "--l2", "0.001", "-o", "run")
        assert outcome.exit_code == 0, outcome.stderr
        result, config = (
            json.loads(Path("run/result.json").read_text()),
            tomllib.loads(Path("run/config.toml").read_text()),
        )
        samples = len(request_of({"model": "m", "data": "blobs.npz", "penalty": 1}).data.load().train)
        assert result["target"] == []
        assert result["penalty"] == {"name": "bic", "multiplier": math.log(samples) / (2 * samples)}
        assert (config["penalty"], "target" in config, config["training"]["l2"]) == ("bic", False, 0.001)
        assert "of loss for each parameter (bic)." in " ".join(outcome.stdout.split())

    @pytest.mark.filterwarnings("ignore:The penalty 0.003")
    def test_a_run_under_a_penalty_that_was_killed_ends_in_the_same_bits(self):
        asked = {
            "model": "mlp.pt2",
            "data": "blobs.npz",
            "penalty": 0.003,
            "epochs": 3,
            "checkpoint_every": 2,
            "l2": 0.1,
        }
        finetune_run(request_of(asked, output=Path("one")))
        with pytest.raises(Killed):
            finetune_run(request_of(asked, output=Path("other")), on_event=dying_at(1))
        summary = resume_run(Path("other"), given={"penalty": 0.003, "l2": 0.1})
        assert summary.result["penalty"] == {"name": "penalty", "multiplier": 0.003}
        assert hashes("one") == hashes("other")

    def test_a_file_can_have_it_as_a_number(self):
        Path("c.toml").write_text('model = "mlp.pt2"\ndata = "blobs.npz"\npenalty = 1e-2\n[training]\nepochs = 3\n')
        outcome = run_cli("finetune", "--config", "c.toml", "-o", "run")
        assert outcome.exit_code == 0, outcome.stderr
        assert json.loads(Path("run/result.json").read_text())["penalty"]["multiplier"] == 0.01

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (
                ("--penalty", "bic", "--target", "macs=0.5"),
                "--penalty bic and --target macs=0.5: a fixed penalty stands in place of a budget. Nothing was "
                "changed. Pass one of the two.",
            ),
            (
                ("--penalty", "ten"),
                "Penalty 'ten': expected a finite number, 0 or more, or aic or bic. Nothing was changed. Write for "
                "example --penalty bic, or --penalty 1e-6: loss for each parameter.",
            ),
            (
                ("--penalty", "-1"),
                "Penalty '-1': expected a finite number, 0 or more, or aic or bic. Nothing was changed. Write for "
                "example --penalty bic, or --penalty 1e-6: loss for each parameter.",
            ),
            (
                ("--penalty", "aic", "--method", "fisher"),
                "Target 'aic' is not a budget, but a score needs one: params, macs, bytes, int8_bytes or latency. "
                "Nothing was changed. Example: macs=0.5; or learn gates, with method l0.",
            ),
        ],
    )
    def test_what_cannot_be_is_said(self, flags: tuple[str, ...], message: str):
        outcome = run_cli(*RUN, *flags, "-o", "run")
        assert outcome.exit_code == 2
        assert " ".join(outcome.stderr.split()).endswith(f"Error: {message}")
        assert not Path("run").exists()


def test_compress_takes_a_criterion_and_has_no_target_then():
    part = blobs(64)
    message = (
        r"^The penalty bic \(0\.0325 of loss for each parameter\) removes nothing: no gate is shut after 2 steps\. "
        r"Give more epochs, or a larger penalty\.$"
    )
    with pytest.warns(PenaltyWarning, match=message):
        result = l0.compress(trained_mlp(part), Data(part, part), target="bic=1", settings=replace(QUICK, epochs=3))
    assert str(result.penalty) == f"bic: {math.log(64) / 128:.4g} for each parameter"
    assert repr(result).startswith("CompressResult(bic: ")
    with pytest.raises(TargetError, match=r"^this result has no target: it was made under a fixed penalty \(bic: "):
        _ = result.reached


@pytest.mark.parametrize("granularity", ["structured", "weights"])
def test_a_penalty_that_outweighs_every_loss_says_so(granularity: str):
    part = blobs(64)
    message = (
        r"^The penalty 100 \(100 of loss for each parameter\) removes all that may go\. Give a smaller penalty, or "
        r"more samples, by which aic and bic are smaller\.$"
    )
    gates = replace(QUICK.gates, learning_rate=1.0)
    settings = replace(QUICK, epochs=30, granularity=granularity, gates=gates)
    with pytest.warns(PenaltyWarning, match=message):
        l0.compress(trained_mlp(part), Data(part, part), target={"penalty": 100.0}, settings=settings)
