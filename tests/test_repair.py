"""Whole shrunk networks repaired: closer to the dense ones, the same every time, and nothing else changed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from repairs import Cut, batches_of, cut_half, errors, images, layers
from torch import Tensor, nn

from l0compress.data import Batch
from l0compress.errors import DataError, InputError, PlanError
from l0compress.graph import KeepPlan, capture, cost, find_groups, shrink
from l0compress.training.repair import layerwise, repair
from l0compress.training.repair.padding import counting


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
        self.third, self.norm2, self.fourth = nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
        self.norm3, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.second(F.relu(self.norm1(self.first(x))))
        x = x + self.norm3(self.fourth(F.relu(self.norm2(self.third(x)))))
        return self.head(F.relu(x).mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> Cut:
    return cut_half(Residual(), images)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(11, 8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.out(torch.relu(self.hidden(self.embed(ids)))), self.embed.weight)


def test_parameters_that_several_layers_read_stay() -> None:
    graph, plan, small = cut_half(Tied(), lambda n: torch.randint(0, 11, (n, 5)))
    found = repair(small, graph, plan, batches_of(lambda n: torch.randint(0, 11, (n, 5))))
    assert torch.equal(found.graph.state()["embed.weight"], small.state()["embed.weight"])
    assert set(layers(found)) == {"hidden", "out"} and layers(found)["out"]


def test_single_weights_that_a_plan_drops_stay_zero_and_the_others_make_up_for_them() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    graph, plan, _ = cut_half(net, lambda n: torch.randn(n, 6))
    plan = plan.with_masks({"2.weight": torch.rand(8, 16) < 0.5})
    small = shrink(graph, plan)
    found = repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 6)))
    before, after = small.state(), found.graph.state()
    assert torch.equal(before["2.weight"] != 0, after["2.weight"] != 0)
    assert not any(torch.equal(before[name], after[name]) for name in ("2.weight", "2.bias"))
    assert layers(found) == {"0": False, "2": True, "4": True}


def test_a_layer_with_zeros_that_would_take_too_long_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "MOST_WORK", 8 * 9**3 / 3)  # eight outputs that read eight units and a bias
    graph = capture(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.zeros(2, 16),))
    plan = KeepPlan.everything(find_groups(graph))
    for kept, solved in ((8, True), (9, False)):
        masked = plan.with_masks({"0.weight": (torch.arange(16) < kept).expand(8, 16)})
        found = repair(shrink(graph, masked), graph, masked, batches_of(lambda n: torch.randn(n, 16)))
        assert ("0" in layers(found)) == solved


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


def test_a_recurrent_layer_and_what_reads_it_are_solved() -> None:
    graph, plan, small = cut_half(Recurrent(), lambda n: torch.randn(n, 5, 6))
    found = repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 5, 6)))
    assert set(layers(found)) == {"layer.l0", "head"}
    before, after = errors(graph, small, found, torch.randn(64, 5, 6))
    assert after < 0.5 * before


class Pooled(nn.Module):
    """Tokens of which a mask says which count."""

    def __init__(self, padding: bool) -> None:
        super().__init__()
        self.padding = padding
        self.up, self.down, self.kind = nn.Linear(4, 16), nn.Linear(16, 3), nn.Embedding(2, 4)

    def forward(self, x: Tensor, mask: Tensor, kind: Tensor) -> Tensor:
        seen = ~mask if self.padding else mask.bool()
        y = self.down(torch.relu(self.up(x + self.kind(kind))))
        return (y * seen.unsqueeze(2)).sum(1)


def token_batches(padding: bool, filler: float, size: int = 16) -> list[Batch]:
    made: list[Batch] = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 6, (size, 1), generator=generator)
        seen = torch.arange(8) < lengths
        x = torch.where(seen.unsqueeze(2), torch.randn(size, 8, 4, generator=generator), filler)
        kind = torch.randint(0, 2, (size, 8), generator=generator)
        made.append(Batch((x, ~seen if padding else seen.long()), {"kind": kind}))
    return made


@pytest.mark.parametrize("padding", [False, True], ids=["ones count", "true is padding"])
def test_padding_does_not_count(padding: bool) -> None:
    batches = token_batches(padding, 0.0)
    graph = capture(Pooled(padding), batches[0].args, batches[0].kwargs)
    plan = KeepPlan.random(find_groups(graph), 0.5, seed=0)
    small = shrink(graph, plan)
    seen = [(batch.args[1] == 0) if padding else (batch.args[1] == 1) for batch in batches]
    found = counting(graph.module(), batches)
    assert all(mask is not None and torch.equal(mask, wanted) for mask, wanted in zip(found, seen, strict=True))
    states = [repair(small, graph, plan, token_batches(padding, filler)).graph.state() for filler in (0.0, 30.0)]
    assert not torch.equal(states[0]["down.weight"], small.state()["down.weight"])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_where_the_data_do_not_tell_what_padding_is_all_positions_count() -> None:
    batches = token_batches(False, 0.0)
    graph = capture(Pooled(False), batches[0].args, batches[0].kwargs)
    mask = torch.randint(0, 2, (16, 8))
    unclear = [Batch((torch.randn(16, 8, 4), mask), {"kind": mask}) for _ in range(2)]
    assert counting(graph.module(), unclear) == [None, None]


def test_what_works_in_place_is_repaired_alike() -> None:
    def state(inplace: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.ReLU(inplace), nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace), nn.Conv2d(16, 3, 1)
        )
        graph, plan, small = cut_half(net, lambda n: images(n).sub(0.5))
        return dict(repair(small, graph, plan, batches_of(images)).graph.state())

    wanted = state(False)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(True).items())


def test_only_as_many_samples_are_used_as_there_is_memory_for(residual: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, small = residual
    monkeypatch.setattr(layerwise, "MOST_BYTES", 1)
    good, bad = batches_of(images), Batch((torch.full((16, 4, 9, 9), float("nan")),), {})
    found = repair(small, graph, plan, [good[0], *[bad] * 3], held_out=[good[1], bad])
    assert any(layers(found).values())
    assert all(bool(tensor.isfinite().all()) for tensor in found.graph.state().values())


def test_of_many_positions_a_share_is_enough(residual: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, small = residual
    whole = repair(small, graph, plan, batches_of(images))
    monkeypatch.setattr(layerwise, "MIN_ROWS", 1_000)
    share = repair(small, graph, plan, batches_of(images))
    assert share.layers != whole.layers
    after = [errors(graph, small, found, images(64))[1] for found in (share, whole)]
    assert after[0] < 2 * after[1]


def test_a_residual_network_comes_closer_to_the_dense_one(residual: Cut) -> None:
    graph, plan, small = residual
    found = repair(small, graph, plan, batches_of(images))
    before, after = errors(graph, small, found, images(64))
    assert after < 0.3 * before
    assert cost(found.graph) == cost(small) == plan.cost
    assert [node.name for node in found.graph.nodes()] == [node.name for node in small.nodes()]


class Block(nn.Module):
    """A transformer block whose norms come after the sums."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm1, self.up, self.down, self.norm2 = (
            nn.LayerNorm(16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.LayerNorm(16),
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = [part(x).unflatten(2, (4, 4)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        x = self.norm1(x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def test_a_transformer_block_comes_closer_to_the_dense_one() -> None:
    graph, plan, small = cut_half(Block(), lambda n: torch.randn(n, 6, 16))
    found = repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 6, 16)))
    before, after = errors(graph, small, found, torch.randn(64, 6, 16))
    assert after < 0.8 * before
    assert len(found.layers) == 6 and layers(found)["down"] and layers(found)["out"]


def test_the_same_inputs_give_the_same_bits_and_global_randomness_stays(residual: Cut) -> None:
    graph, plan, small = residual
    batches = batches_of(images)
    before = torch.get_rng_state()
    first = repair(small, graph, plan, batches)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = repair(small, graph, plan, batches)
    assert first.layers == second.layers
    assert all(torch.equal(t, second.graph.state()[name]) for name, t in first.graph.state().items())


def test_neither_graph_is_changed(residual: Cut) -> None:
    graph, plan, small = residual
    states = [{name: t.clone() for name, t in g.state().items()} for g in (graph, small)]
    repair(small, graph, plan, batches_of(images))
    for g, state in zip((graph, small), states, strict=True):
        assert all(torch.equal(t, g.state()[name]) for name, t in state.items())


def test_one_batch_is_not_enough() -> None:
    graph, plan, small = cut_half(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), lambda n: torch.randn(n, 6)
    )
    with pytest.raises(DataError) as caught:
        repair(small, graph, plan, batches_of(lambda n: torch.randn(n, 6), count=1))
    assert str(caught.value) == (
        "repair got 1 batch, but needs some to solve layers on and others to check them on. Nothing was changed. Give "
        "two or more, or some as held_out."
    )


def test_another_small_graph_than_the_plan_leaves_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    graph, plan, small = cut_half(net, lambda n: torch.randn(n, 6))
    other = KeepPlan.from_kept(plan.groups, {"0 channels": [0]})
    with pytest.raises(PlanError) as caught:
        repair(small, graph, other, batches_of(lambda n: torch.randn(n, 6)))
    width = len(plan.kept()["0 channels"])
    shape = tuple(small.state()["0.weight"].shape)
    assert shape[0] == width
    assert str(caught.value) == (
        f"the small graph's '0.weight' has shape {shape} where the plan leaves (1, 6). Nothing was changed. Give "
        "repair the graph that shrink(graph, plan) returned, and the same plan."
    )
    with pytest.raises(InputError, match="repair takes a captured graph"):
        repair(small.module(), graph, plan, [])
