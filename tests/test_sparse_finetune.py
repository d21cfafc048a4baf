"""Runs at the granularity of single weights: budgets, zeros, what results say, and what goes on after a stop."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clouds import QUICK
from conftest import run_cli
from torch import Tensor

import l0compress as l0
from l0compress.data import Data
from l0compress.errors import InputError, NotEqualError
from l0compress.gates.attach import GatedNetwork, gate
from l0compress.graph import CapturedGraph, KeepPlan, cost, masked, nonzero_cost
from l0compress.graph.groups import groups_without_moves
from l0compress.graph.groups.resource import Counted
from l0compress.pipeline.config import read_config
from l0compress.training import finetune as finetuning
from l0compress.training.decision import Decision
from l0compress.training.final_phase import FinalPhase
from l0compress.training.finetune import FinetuneResult, finetune, finish
from l0compress.training.problem import problem_of
from l0compress.training.reporting import Reporter
from l0compress.training.sparsity import keep_zeros_
from l0compress.training.state import TrainingState
from l0compress.verification.calls import Call
from l0compress.verification.equality import verify

SPARSE = replace(QUICK, granularity="weights", epochs=8)
LONGER = replace(SPARSE, epochs=24)
BOTH = replace(QUICK, granularity="both")
DENSE = 8 * 16 + 16 + 16 * 3 + 3


@pytest.fixture(scope="module")
def result(graph: CapturedGraph, data: Data) -> FinetuneResult:
    return finetune(graph, data, {"params": 0.5}, settings=LONGER)


def nonzeros(graph: CapturedGraph) -> int:
    """Counted on a module: every bias, and what is not zero of the matrices."""
    return sum(
        int((parameter != 0).sum()) if parameter.dim() > 1 else parameter.numel()
        for parameter in graph.module().parameters()
    )


def test_the_budget_counts_what_is_not_zero_and_is_met_exactly(result):
    assert nonzeros(result.last) == nonzeros(result.small) == nonzero_cost(result.small).params == int(0.5 * DENSE)
    assert cost(result.small).params == DENSE


def test_the_small_model_still_knows_the_task(result):
    assert result.dense_evaluation.metric > 0.9
    assert result.best_evaluation.metric > result.dense_evaluation.metric - 0.05


def test_the_small_model_equals_the_masked_dense_one(result, data):
    call = Call(data.test.take(slice(0, 50)).args)
    assert verify(result.small, masked(result.folded, result.plan), inputs=[call]).max_relative < 1e-6
    for name, mask in result.plan.masks.items():
        assert not bool((result.last.state()[name][~mask] != 0).any())


@pytest.mark.parametrize("changes", [{"optimizer": "sgd", "learning_rate": 0.05}, {"weight_decay": 0.5, "clip": None}])
@pytest.mark.parametrize("settings", [SPARSE, BOTH])
def test_other_ways_to_train_keep_the_zeros_too(graph, data, settings, changes):
    result = finetune(graph, data, {"params": 0.25}, settings=replace(settings, **changes))
    assert nonzeros(result.small) <= int(0.25 * DENSE) and nonzeros(result.last) <= int(0.25 * DENSE)
    assert nonzeros(result.last) >= int(0.25 * DENSE) - (0 if settings is SPARSE else 3)
    call = Call(data.test.take(slice(0, 50)).args)
    assert verify(result.small, masked(result.folded, result.plan), inputs=[call]).max_relative < 1e-6


@pytest.mark.parametrize("unit", ["params", "macs"])
def test_both_keeps_every_unit_and_is_physically_smaller(graph, data, unit):
    result = finetune(graph, data, {unit: 0.3}, settings=BOTH)
    found = nonzero_cost(result.small).get(unit)
    assert 0.27 * cost(graph).get(unit) < found <= 0.3 * cost(graph).get(unit)
    assert cost(result.small).params < DENSE
    assert cost(result.small).params > nonzero_cost(result.small).params


def test_a_fixed_penalty_needs_no_target(graph, data):
    result = finetune(graph, data, {"penalty": 0.02}, settings=LONGER)
    assert nonzeros(result.small) < 0.9 * DENSE


def test_the_same_seed_gives_the_same_bits(graph, data, result):
    again = finetune(graph, data, {"params": 0.5}, settings=LONGER)
    assert all(torch.equal(tensor, again.last.state()[name]) for name, tensor in result.last.state().items())


def test_zeros_that_do_not_stay_are_refused(graph, data, monkeypatch):
    def without_masks(*arguments, **options):
        return FinalPhase(*arguments, **{**options, "masks": {}})

    monkeypatch.setattr(finetuning, "FinalPhase", without_masks)
    with pytest.raises(NotEqualError, match=r"weights that were removed from '0\.weight' are not zero after training"):
        finetune(graph, data, {"params": 0.3}, settings=SPARSE)


def test_a_small_model_that_is_not_what_the_plan_leaves_is_refused(graph, data):
    state = TrainingState.begin(problem_of(graph, data, SPARSE), Reporter())
    plan = KeepPlan.everything(groups_without_moves(graph))
    mask = torch.rand(graph.state()["0.weight"].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    forgotten = Decision(plan.with_masks({"0.weight": mask}), Decision.of(plan).small)
    with pytest.raises(NotEqualError) as error:
        finish(state, forgotten, (Counted(forgotten.plan.groups, "params"),), begins=state.problem.gated_steps)
    assert re.fullmatch(
        r"After surgery: The two models are not equal: output 'output_0' differs at index \(\d+, \d\) for batch size "
        r"\d+: .*, the limit is 1e-05\. The result is refused and nothing was written\. Repeat the check in float64 to "
        r"tell rounding from a real difference\. This is a defect of l0compress: please report the model\.",
        str(error.value),
    )


def test_an_unknown_granularity_is_refused():
    with pytest.raises(InputError, match="granularity='fine': expected one of structured, weights, both"):
        replace(QUICK, granularity="fine")


class TestGoingOn:
    @pytest.mark.parametrize("granularity", ["weights", "both"])
    def test_training_of_gates_goes_on_from_its_tensors_bit_for_bit(self, graph, data, granularity):
        x, y = data.train.inputs[0][:64], data.train.targets[:64]

        def fresh() -> tuple[GatedNetwork, torch.optim.Optimizer]:
            gated = gate(graph, granularity=granularity).train()
            parameters = [*gated.weights().values(), *gated.gate_parameters().values()]
            return gated, torch.optim.Adam(parameters, lr=0.03)

        def steps_(gated: GatedNetwork, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
            for _ in range(5):
                optimizer.zero_grad()
                (torch.nn.functional.cross_entropy(gated(x), y) + 2 * gated.expected_cost("params").log()).backward()
                optimizer.step()
            return {name: tensor.clone() for name, tensor in gated.state_dict().items()}

        torch.manual_seed(0)
        first = fresh()
        steps_(*first)
        stored = {name: tensor.clone() for name, tensor in first[0].state_dict().items()}
        states, noise = copy.deepcopy(first[1].state_dict()), torch.get_rng_state()
        expected = steps_(*first)
        second = fresh()
        second[0].load_state_dict(stored)
        second[1].load_state_dict(states)
        torch.set_rng_state(noise)
        found = steps_(*second)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert not torch.equal(
            found["network.l0_weight_gate_0.log_alpha"], stored["network.l0_weight_gate_0.log_alpha"]
        )

    def test_a_decision_is_named_tensors_and_back(self, result):
        tensors = {**result.plan.tensors(), "another": torch.zeros(1)}
        again = KeepPlan.from_tensors(result.plan.groups, tensors)
        assert torch.equal(again.keep, result.plan.keep)
        assert again.masks.keys() == result.plan.masks.keys() != set()
        assert all(torch.equal(again.masks[name], mask) for name, mask in result.plan.masks.items())


class TestMagnitude:
    @pytest.mark.parametrize("method", ["magnitude", "layer-magnitude"])
    def test_it_meets_the_same_budget_in_the_same_number_of_epochs(self, graph, data, method):
        result = finetune(graph, data, {"params": 0.3}, settings=replace(SPARSE, method=method))
        assert nonzeros(result.last) == int(0.3 * DENSE)
        assert [event.stage for event in result.history] == ["finetune"] * SPARSE.epochs

    def test_globally_the_smallest_of_all_weights_go(self, graph, data):
        plan = finetune(graph, data, {"params": 0.6}, settings=replace(SPARSE, method="magnitude", epochs=1)).plan
        kept = torch.cat([graph.state()[name].abs()[mask] for name, mask in plan.masks.items()])
        lost = torch.cat([graph.state()[name].abs()[~mask] for name, mask in plan.masks.items()])
        assert float(kept.min()) >= float(lost.max())

    def test_by_layer_each_keeps_the_same_share_of_its_largest(self, graph, data):
        settings = replace(SPARSE, method="layer-magnitude", epochs=1)
        plan = finetune(graph, data, {"params": 0.6}, settings=settings).plan
        shares = [float(mask.float().mean()) for mask in plan.masks.values()]
        assert max(shares) - min(shares) < 0.03
        for name, mask in plan.masks.items():
            values = graph.state()[name].abs()
            assert float(values[mask].min()) >= float(values[~mask].max())


class TestCommands:
    @pytest.fixture
    def run(self, mlp_pt2: Path, blobs_npz: Path, tmp_path: Path) -> Path:
        outcome = run_cli(
            "finetune", mlp_pt2, "--data", blobs_npz, "--target", "params=0.5", "--granularity", "weights", "--epochs",
            "3", "-o", tmp_path / "run",
        )  # fmt: skip
        assert outcome.exit_code == 0
        assert "nonzero parameters" in outcome.stdout and "weight bytes without zeros" in outcome.stdout
        assert "Budget: at most 37 parameters; 37 were used (100.0%)." in outcome.stdout
        return tmp_path / "run"

    def test_results_keep_shapes_and_nonzeros_apart(self, run):
        result = json.loads((run / "result.json").read_text())
        assert result["target"] == {"unit": "params", "limit": 37, "reached": 37}
        assert result["small"]["params"] == result["dense"]["params"] == 75
        assert result["nonzero"]["params"] == 37
        assert result["nonzero"]["macs"] == 37 - 9
        assert read_config(run / "config.toml")["granularity"] == "weights"

    def test_the_artifact_has_the_zeros_and_equals_the_run(self, run, tmp_path):
        assert run_cli("export", run, "--format", "onnx", "-o", tmp_path / "small.onnx").exit_code == 0
        assert run_cli("verify", tmp_path / "small.onnx", "--against", run).exit_code == 0
        import onnx

        arrays = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "small.onnx").graph.initializer]
        assert sum(int((array != 0).sum()) for array in arrays if array.ndim == 2) == 37 - 9

    def test_an_unknown_granularity_is_a_usage_error(self, mlp_pt2, blobs_npz):
        outcome = run_cli("finetune", mlp_pt2, "--data", blobs_npz, "--target", "params=0.5", "--granularity", "rows")
        assert outcome.exit_code == 2


def test_in_a_loop_of_ones_own(data, graph):
    gated = l0.gate(graph, granularity="weights", magnitude_slope=1.0)
    budget = l0.Budget(gated, {"params": 0.5}, ramp_steps=20)
    x, y = data.train.inputs[0], data.train.targets
    optimizer = torch.optim.AdamW(gated.param_groups(lr=5e-3, gate_lr=0.1, weight_decay=0.01))
    for _ in range(60):
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(gated.train()(x), y) + budget.penalty()).backward()
        optimizer.step()
        budget.step()
    plan = l0.harden(gated, budget)
    small = gated.shrink(plan)
    network = keep_zeros_(small.module(), plan.small_masks()).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-2, weight_decay=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    trained = small.with_state(network.state_dict())
    assert l0.nonzero_cost(trained).params == budget.target == int(0.5 * DENSE)
    assert float((network.eval()(x).argmax(1) == y).float().mean()) > 0.85
