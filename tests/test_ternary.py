"""Training of ternary weights: the mathematics, what is trained, and that the small model has such weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from clouds import QUICK
from conftest import printed_json, run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from models import randomise
from onnx import numpy_helper
from torch import Tensor, nn

from l0compress.data import Data
from l0compress.errors import InputError
from l0compress.graph import CapturedGraph, capture, masked, nonzero_cost
from l0compress.pipeline.config import read_config
from l0compress.training.evaluation import evaluate
from l0compress.training.finetune import FinetuneResult, finetune
from l0compress.training.losses import objective_of
from l0compress.training.settings import FinetuneSettings
from l0compress.training.ternary import ternarised, ternary, ternary_network_, ternary_weights
from l0compress.verification.calls import Call
from l0compress.verification.equality import verify

TERNARY = replace(QUICK, epochs=6, ternary=True)


def is_ternary(weight: Tensor, axis: int = 0) -> bool:
    """Whether every row has one magnitude beside zeros, by looking at the rows one by one."""
    rows = weight.detach().transpose(0, axis).flatten(1)
    return all(len(row.abs()[row != 0].unique()) <= 1 for row in rows)


class TestTheTensorFunction:
    @given(st.integers(0, 10_000), st.sampled_from([(5, 7), (4, 3, 2), (6, 2, 3, 3)]), st.integers(0, 1))
    @settings(max_examples=60, deadline=None)
    def test_every_row_has_the_scale_that_is_nearest_to_it_given_its_zeros(self, seed, shape, axis):
        """Equation 5 of the paper: the mean magnitude of what is not zero; least squares knows no better one."""
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = ternary(weight, axis)
        assert is_ternary(found, axis)
        rows = zip(*(each.transpose(0, axis).flatten(1).numpy() for each in (weight, found)), strict=True)
        for row, values in rows:
            signs = np.sign(values)
            np.testing.assert_array_equal(signs, np.sign(row) * (np.abs(row) > 0.7 * np.abs(row).mean()))
            (best,), *_ = np.linalg.lstsq(signs[:, None], row, rcond=None)
            np.testing.assert_allclose(values, best * signs, rtol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_the_gradient_passes_and_types_stay(self, dtype):
        weight = torch.randn(5, 4, dtype=dtype, requires_grad=True)
        found, reading = ternary(weight, 0), torch.randn(5, 4, dtype=dtype)
        assert found.dtype == dtype
        (gradient,) = torch.autograd.grad((found * reading).sum(), weight)
        assert torch.equal(gradient, reading)

    def test_zeros_count_in_the_threshold_and_stay(self):
        dense = torch.tensor([[4.0, -5.0, 2.0, 5.0]])
        assert ternary(dense, 0).count_nonzero() == 3
        sparse = torch.tensor([[4.0, -5.0, 2.0, 5.0, 0.0, 0.0, 0.0, 0.0]])
        found = ternary(sparse, 0)
        assert found.tolist() == [[4.0, -4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0]]
        assert not bool(ternary(torch.zeros(3, 2), 0).any())


class Mixed(nn.Module):
    """Words, a convolution and its transpose, a matrix with outputs as columns, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up = nn.Embedding(20, 6), nn.ConvTranspose1d(6, 5, 2)
        self.down, self.norm = nn.Conv1d(5, 8, 3), nn.BatchNorm1d(8)
        self.columns, self.recurrent = nn.Parameter(torch.empty(8, 9)), nn.GRU(9, 7, batch_first=True)
        self.scores = nn.Linear(7, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.down(self.up(self.words(tokens).transpose(1, 2)))))
        return self.scores(self.recurrent(x.transpose(1, 2) @ self.columns)[0][:, -1])


AXES = {
    "up.weight": 1,
    "down.weight": 0,
    "columns": 1,
    "recurrent.weight_ih_l0": 0,
    "recurrent.weight_hh_l0": 0,
    "scores.weight": 0,
}


@pytest.fixture(scope="module")
def mixed() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(randomise(Mixed()).eval(), (torch.randint(0, 20, (4, 9)),))


class TestNetworks:
    def test_what_products_read_has_scales_along_its_outputs_and_tables_stay(self, mixed):
        assert {weight.names[0]: weight.axis for weight in ternary_weights(mixed)} == AXES
        found = ternarised(mixed, ternary_weights(mixed)).state()
        for name, values in mixed.state().items():
            assert is_ternary(found[name], AXES[name]) if name in AXES else torch.equal(found[name], values)

    def test_the_network_that_is_trained_computes_with_the_values_that_are_kept(self, mixed):
        tokens = torch.randint(0, 20, (6, 9), generator=torch.Generator().manual_seed(1))
        weights = ternary_weights(mixed)
        network = ternary_network_(mixed.module(), weights)
        assert torch.equal(network(tokens), ternarised(mixed, weights).module()(tokens))
        assert not torch.equal(network(tokens), mixed.module()(tokens))
        network.train()(tokens).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert network.state_dict().keys() == mixed.state().keys()

    def test_globs_keep_layers_in_float(self, mixed):
        left = {weight.names[0] for weight in ternary_weights(mixed, ["recurrent", "*.weight"])}
        assert left == {"columns"}

    def test_tied_weights_become_ternary_once_and_a_table_that_is_read_as_scores_too_stays(self):
        words, first, second = nn.Embedding(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        second.weight, scores = first.weight, nn.Linear(6, 6)
        scores.weight = words.weight
        model = nn.Sequential(words, first, nn.ReLU(), second, nn.ReLU(), scores)
        graph = capture(model, (torch.zeros(2, 3, dtype=torch.long),))
        assert [weight.names for weight in ternary_weights(graph)] == [("3.weight",)]
        network = ternary_network_(graph.module(), ternary_weights(graph))
        values = ternary(first.weight, 0)
        hidden = (words.weight[:1] @ values.T + first.bias).relu()
        expected = (hidden @ values.T + second.bias).relu() @ words.weight.T + scores.bias
        torch.testing.assert_close(network(torch.zeros(1, 1, dtype=torch.long))[0], expected)


@pytest.fixture(scope="module", params=["structured", "weights", "both"])
def result(graph: CapturedGraph, data: Data, request: pytest.FixtureRequest) -> FinetuneResult:
    return finetune(graph, data, {"params": 0.5}, settings=replace(TERNARY, granularity=request.param))


class TestRuns:
    def test_every_weight_of_the_small_model_is_ternary_and_it_knows_its_task(self, result):
        for graph in (result.small, result.last):
            weights = ternary_weights(graph)
            assert weights and all(is_ternary(graph.state()[name], w.axis) for w in weights for name in w.names)
        assert result.best_evaluation.metric > result.dense_evaluation.metric - 0.1

    def test_the_best_epoch_is_chosen_by_what_the_small_model_computes(self, result, data):
        found = evaluate(result.small.module(), data.val, objective_of(result.reading, "auto"))
        assert found == result.best_evaluation

    def test_it_equals_the_masked_dense_model_and_keeps_to_the_budget(self, result, data):
        call = Call(data.test.take(slice(0, 50)).args)
        assert verify(result.small, masked(result.folded, result.plan), inputs=[call]).max_relative < 1e-6
        assert nonzero_cost(result.small).params <= int(0.5 * (8 * 16 + 16 + 16 * 3 + 3))
        for name, mask in result.plan.small_masks().items():
            assert not bool(result.small.state()[name][~mask].any())

    def test_the_phase_of_the_gates_is_that_of_a_float_run(self, graph, data):
        settings = replace(TERNARY, granularity="weights")
        plain, found = (
            finetune(graph, data, {"params": 0.5}, settings=replace(settings, ternary=ternary))
            for ternary in (False, True)
        )
        gated = settings.gated_steps(1)
        assert [row.loss for row in plain.history[:gated]] == [row.loss for row in found.history[:gated]]
        assert plain.history[gated].loss != found.history[gated].loss

    def test_layers_that_are_named_stay_in_float(self, graph, data):
        found = finetune(graph, data, {"params": 0.5}, settings=replace(TERNARY, keep_float="0")).small.state()
        assert is_ternary(found["2.weight"]) and not is_ternary(found["0.weight"])

    def test_it_goes_together_with_rounding_for_int8(self, graph, data):
        found = finetune(graph, data, {"params": 0.5}, settings=replace(TERNARY, quantization_aware=True))
        assert is_ternary(found.small.state()["0.weight"]) and found.best_evaluation.metric > 0.8


class TestRefusals:
    def test_without_a_final_phase(self):
        with pytest.raises(InputError) as error:
            FinetuneSettings(ternary=True, epochs=0)
        assert str(error.value) == (
            "ternary with epochs=0: weights adapt to rounding in the phase after the decision, but there is none. "
            "Nothing was changed. Pass --epochs 1 or more, or omit --ternary."
        )

    def test_exceptions_from_nothing(self):
        with pytest.raises(InputError) as error:
            FinetuneSettings(keep_float="0")
        assert str(error.value) == (
            "keep_float names layers that do not become ternary, but without ternary none does. Nothing was changed. "
            "Pass --ternary, or omit --keep-float."
        )

    def test_a_glob_that_matches_nothing(self, graph, data):
        with pytest.raises(InputError) as error:
            finetune(graph, data, {"params": 0.5}, settings=replace(TERNARY, keep_float="head"))
        assert str(error.value).startswith("keep_float 'head' matches no layer of the model. Nothing was changed.")

    def test_a_model_of_which_nothing_becomes_ternary(self, graph, data):
        with pytest.raises(InputError) as error:
            finetune(graph, data, {"params": 0.5}, settings=replace(TERNARY, keep_float=["0", "2"]))
        assert str(error.value) == (
            "ternary: no weight of the model would become ternary: of those that products read, keep_float names all "
            "of them (0, 2). Nothing was changed. Leave --ternary out, or name fewer layers with --keep-float."
        )


@pytest.mark.slow
def test_from_the_command_line_to_a_bundle(mlp_pt2: Path, blobs_npz: Path, tmp_path: Path) -> None:
    """The run equals its ONNX file, which is an ordinary one, and its bundle, by the same check as any other."""
    run = tmp_path / "run"
    outcome = run_cli(
        "finetune", mlp_pt2, "--data", blobs_npz, "--target", "params=0.8", "--epochs", "3", "--ternary",
        "--keep-float", "2", "-o", run,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    assert read_config(run / "config.toml")["keep_float"] == "2"
    for options, name in (("--format", "onnx"), "model.onnx"), (("--format", "bundle", "--batch", "1"), "model.l0c"):
        assert printed_json("export", run, *options)["path"] == str(run / name)
        assert printed_json("verify", run / name, "--against", run)["max_relative"] < 1e-5
    arrays = {one.name: numpy_helper.to_array(one) for one in onnx.load(run / "model.onnx").graph.initializer}
    assert {array.dtype.name for array in arrays.values() if array.ndim > 1} == {"float32"}
    assert {name: is_ternary(torch.tensor(array)) for name, array in arrays.items() if array.ndim > 1} == {
        "0.weight": True,
        "2.weight": False,
    }
