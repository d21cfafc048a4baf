"""Copies, pickles and files of graphs, groups, plans, gated networks and budgets: same function, same decision."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import build
from own_loop import decided_, trained
from torch import Tensor, nn

import l0compress as l0
from l0compress.errors import PlanError
from l0compress.graph.groups import Groups
from l0compress.verification.calls import asked_dims


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved,
}


@pytest.fixture(params=COPIES)
def copied(request) -> Callable[[Any], Any]:
    return COPIES[request.param]


class Joined(nn.Module):
    """Inputs whose batches are free apart, sizes that the data decides, and a dict for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        positive = (x[:, 0] > 0).nonzero()[:, 0]
        return {"joined": self.head(torch.cat([self.left(x).relu()[positive], self.right(y)], 0)), "x": x}


def joined() -> l0.CapturedGraph:
    free = {name: {0: torch.export.Dim.AUTO} for name in ("x", "y")}
    return l0.capture(Joined(), (torch.randn(3, 6), torch.randn(4, 6)), dynamic=free)


def multiples() -> l0.CapturedGraph:
    """A length that has to be a multiple of four."""
    model = nn.Sequential(nn.Unflatten(1, (-1, 4)), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return l0.capture(
        model, (torch.randn(2, 16),), dynamic={"input": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}
    )


def of_zoo(name: str) -> l0.CapturedGraph:
    model, args, kwargs = build(name)
    return l0.capture(model, args, kwargs)


GRAPHS = {
    "joined": joined,
    "multiples": multiples,
    "ShuffleNet-like": lambda: of_zoo("ShuffleNet-like"),
}


def told(groups: Groups) -> tuple:
    return tuple(
        (group.name, group.kind, group.moves, group.params, group.macs) for group in groups.groups
    ), groups.frozen


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", GRAPHS)
def test_a_pickled_graph_has_the_same_names_free_sizes_groups_and_function(name):
    graph = GRAPHS[name]()
    again = pickle.loads(pickle.dumps(graph))
    assert [node.name for node in again.nodes()] == [node.name for node in graph.nodes()]
    assert [dims and set(dims) for dims in asked_dims(again)] == [dims and set(dims) for dims in asked_dims(graph)]
    groups = l0.find_groups(graph)
    assert told(l0.find_groups(again)) == told(groups)
    plan = l0.KeepPlan.random(groups)
    small = pickle.loads(pickle.dumps(l0.shrink(again, pickle.loads(pickle.dumps(plan)))))
    l0.verify(small, l0.masked(graph, plan))
    assert l0.cost(small) == plan.cost


@pytest.mark.parametrize("granularity", ["structured", "weights", "both"])
def test_a_copied_network_computes_the_same_and_learns_by_itself(graph, data, copied, granularity):
    gated, _ = trained(graph, data, granularity=granularity, steps=3)
    x = data.test.inputs[0][:8]
    again = copied(gated)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in gated.named_parameters()]
    assert list(again.state_dict()) == list(gated.state_dict())
    for mode in (True, False):
        torch.manual_seed(1)
        expected = gated.train(mode)(x)
        torch.manual_seed(1)
        assert torch.equal(again.train(mode)(x), expected)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1.0)
    assert torch.equal(gated(x), expected)
    assert not torch.equal(again(x), expected)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("granularity", ["structured", "both"])
def test_a_copied_budget_and_plan_go_on_where_they_were(graph, data, copied, granularity):
    gated, budget = trained(graph, data, granularity=granularity, steps=6)
    plan = l0.harden(gated, budget)
    network, limit, decision = copied((gated, budget, plan))
    assert limit.gated is network
    assert (limit.state_dict(), limit.target, limit.violation) == (budget.state_dict(), budget.target, budget.violation)
    assert torch.equal(l0.harden(network, limit).keep, plan.keep)
    assert torch.equal(l0.harden(network, copied(budget)).keep, plan.keep)
    x = data.test.inputs[0][:8]
    torch.testing.assert_close(network.shrink(decision).module()(x), decided_(gated, plan)(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(PlanError, match=r"^the plan was made by training, but the graph has the weights from be"):
        l0.shrink(copied(graph), decision)


def test_a_copied_graph_does_not_share_its_weights(graph, copied):
    again = copied(graph)
    next(iter(again.state().values())).add_(1.0)
    assert not torch.equal(next(iter(again.state().values())), next(iter(graph.state().values())))


def test_a_copied_small_network_trains_and_evaluates_as_such(copied):
    ids = torch.arange(8).view(2, 4)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Dropout(0.5), nn.Linear(6, 9))
    network = copied(l0.capture(model, (ids,)).module())
    assert not torch.equal(network.train()(ids), network(ids))
    assert torch.equal(network.eval()(ids), network(ids))


@pytest.mark.parametrize("granularity", ["structured", "both"])
def test_a_state_dict_is_loaded_as_weights_alone(graph, data, granularity):
    gated, budget = trained(graph, data, granularity=granularity, steps=6)
    file = io.BytesIO()
    torch.save(gated.state_dict(), file)
    file.seek(0)
    again = l0.gate(graph, granularity=granularity)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(l0.harden(again, budget).keep, l0.harden(gated, budget).keep)


def test_groups_that_this_program_would_not_find_are_refused(graph, monkeypatch):
    pickled = pickle.dumps(l0.find_groups(graph))
    others = l0.find_groups(joined())
    monkeypatch.setattr("l0compress.graph.groups.groups.find_groups", lambda _: others)
    with pytest.raises(PlanError) as error:
        pickle.loads(pickled)
    assert str(error.value) == (
        "the groups in this pickle are not those that this program finds in their graph. Nothing was changed. Call "
        "register_operator for the same operators as before, and use the same version of l0compress."
    )


def _shrunk(gated: nn.Module, budget: l0.Budget, graph: l0.CapturedGraph) -> tuple[list[bool], dict[str, Any]]:
    """What another process makes of what it is handed."""
    torch.set_num_threads(1)
    plan = l0.harden(gated, budget)
    assert l0.cost(graph).macs == budget.dense
    return plan.keep.tolist(), {name: tensor.numpy() for name, tensor in gated.shrink(plan).state().items()}


@pytest.mark.slow
def test_another_process_hardens_and_shrinks_what_it_is_handed(graph, data):
    gated, budget = trained(graph, data, steps=6)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        keep, state = pool.apply(_shrunk, (gated, budget, graph))
    plan = l0.harden(gated, budget)
    assert keep == plan.keep.tolist()
    for name, tensor in gated.shrink(plan).state().items():
        torch.testing.assert_close(torch.from_numpy(state[name]), tensor)


def test_what_is_printed_is_a_few_lines_that_a_person_reads(graph, data):
    gated, budget = trained(graph, data, granularity="both", steps=6)
    plan = l0.harden(gated, budget)
    result = l0.compress(graph.module(), data, target={"macs": 0.5}, settings=l0.FinetuneSettings(epochs=2))
    cost, far = plan.cost, f"largest difference {result.equality.max_relative:.2g} of the largest value"
    kept = f"keeps {int(plan.keep.sum())} of 24 moves: {cost.params} of 195 parameters, {cost.macs} of 176 MACs"
    now = f"expected now {budget.density:.1%}, multiplier {budget.multiplier:.4g}, step 6 of 3 of its ramp"
    first_lines = {
        "CapturedGraph(195 parameters, 3 operators)": graph,
        "Groups(2 groups, 24 moves; 2 parameter dimensions cannot be cut)": gated.groups,
        "GatedNetwork(gates on 24 moves in 2 groups, 176 gates on 2 weights; training mode)": gated,
        f"KeepPlan({kept})": plan,
        f"Budget(macs: at most 88 of 176; {now})": budget,
        f"CompressResult(macs=0.5: {result.reached} of at most 88)": result,
        f"Equality(output_0: {far}; batch sizes 2, 1, 11)": result.equality,
    }
    for first, value in first_lines.items():
        lines = repr(value).splitlines()
        assert lines[0] == first
        assert len(lines) <= 10
        assert all(len(line) < 120 and "tensor(" not in line for line in lines)
