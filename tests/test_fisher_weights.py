"""Fisher information of single weights: against Jacobians, and what it decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clouds import QUICK
from torch import nn

from l0compress.data import Data, Split
from l0compress.data.batches import Batch
from l0compress.graph import capture, cost, nonzero_cost, shrink
from l0compress.training.events import CUT
from l0compress.training.finetune import finetune
from l0compress.training.losses import objective_for
from l0compress.training.methods.fisher_weights import saliencies, weight_information
from l0compress.training.problem import problem_of

SPARSE = replace(QUICK, granularity="weights", method="fisher", epochs=0)


def network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs)).eval()


@pytest.mark.parametrize("outputs", [1, 3])
def test_it_is_the_gauss_newton_diagonal_of_the_weights(outputs):
    model, x = network(outputs), torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    graph, objective = capture(model, (x[:2],)), objective_for("mse", None, model(x).detach())
    batches = [Batch((row,), {}) for row in x.split(1)]
    # Of one output a single draw of signs says all; of several, it is a mean over draws.
    draws = [weight_information(graph, batches, objective, seed=seed) for seed in range(1 if outputs == 1 else 200)]
    parameters = dict(model.named_parameters())
    jacobians = torch.func.vmap(
        torch.func.jacrev(lambda p, row: torch.func.functional_call(model, p, (row,))), (None, 0)
    )
    for name, each in jacobians({name: p.detach() for name, p in parameters.items()}, x).items():
        if not name.endswith("weight"):
            assert name not in draws[0]
            continue
        expected = each.square().sum(1).mean(0).double() * 2 / (outputs * objective.reading.scale)
        found = torch.stack([draw[name] for draw in draws]).mean(0)
        torch.testing.assert_close(found, expected, rtol=1e-4 if outputs == 1 else 0.3, atol=1e-6)


def test_probes_leave_the_graph_and_the_global_random_state_alone():
    model, x = network(3), torch.randn(8, 5)
    graph, objective = capture(model, (x[:2],)), objective_for("mse", None, model(x).detach())
    state, random = {name: value.clone() for name, value in graph.state().items()}, torch.get_rng_state()
    first, again = (weight_information(graph, [Batch((x,), {})], objective, seed=5) for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, graph.state()[name]) for name, value in state.items())


def silent() -> tuple[nn.Module, Data]:
    """Two inputs, of which the second is always zero, so that its weights, the largest, say nothing."""
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    with torch.no_grad():
        model[0].weight[:, 1] = 10.0
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0
    return model, Data(*[Split((x,), model(x).detach())] * 2)


def test_weights_that_no_prediction_depends_on_go_first_however_large():
    model, data = silent()
    settings = replace(SPARSE, loss="mse")
    graph = capture(model, (data.train.inputs[0][:2],))
    scores = saliencies(graph, problem_of(graph, data, settings))
    assert not bool(scores["0.weight"][:, 1].any()) and bool(scores["2.weight"].any())
    result = finetune(graph, data, {"params": 0.76}, settings=settings)
    assert result.plan.masks["0.weight"].tolist() == [[True, False]] * 8
    assert result.best_evaluation.loss < 1e-10
    large = finetune(graph, data, {"params": 0.76}, settings=replace(settings, method="magnitude"))
    assert bool(large.plan.masks["0.weight"][:, 1].all())


def test_of_multiplications_what_is_lost_counts_for_each_that_a_weight_takes():
    """8 for one of the convolution, at as many positions, and 1 for one of the other layer; 288 in all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    x = torch.randn(128, 2, 10)
    data = Data(*[Split((x,), model(x).argmax(-1))] * 2)
    graph = capture(model, (x[:2],))
    result = finetune(graph, data, {"macs": 0.5}, settings=SPARSE)
    assert 0.45 * 288 < nonzero_cost(result.small).macs <= 144
    scores, macs = saliencies(graph, problem_of(graph, data, SPARSE)), {"0.weight": 8.0, "3.weight": 1.0}
    by_cost = torch.cat([(scores[name] / each).flatten() for name, each in macs.items()]).argsort(descending=True)
    costs = torch.cat([torch.full((scores[name].numel(),), each) for name, each in macs.items()])[by_cost]
    kept = torch.cat([result.plan.masks[name].flatten() for name in macs])[by_cost]
    # The best of each weight stays anyway, which may take the place of others.
    assert bool(kept[costs.cumsum(0) <= 144 - 9].all())


def test_a_repair_after_each_of_several_steps_leaves_most_of_the_model_without_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)).eval()
    x = torch.randn(600, 4) @ torch.randn(4, 12)  # 12 inputs of which 4 would say as much
    data = Data(*[Split((part,), model(part).detach()) for part in (x[:400], x[400:])])
    settings = replace(SPARSE, loss="mse", epochs=0)
    steps = []
    graph = capture(model, (x[:2],))
    result = finetune(graph, data, {"params": 0.3}, settings=settings, on_event=lambda e: steps.append(e.stage))
    assert steps.count(CUT) == 2
    assert nonzero_cost(result.small).params == int(0.3 * cost(graph).params)
    repaired, cut = (problem_of(graph, data, settings).evaluate(one.module()).loss for one in (
        result.small, shrink(graph, result.plan.decision()),
    ))  # fmt: skip
    assert repaired < 0.2 * cut
