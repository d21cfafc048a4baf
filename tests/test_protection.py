"""What is to be kept stays, whatever decides: layers by name, and a least share of every group."""

from __future__ import annotations

import copy
import math
import pickle
import re
from dataclasses import replace

import pytest
import torch
from clouds import QUICK, blobs
from conftest import printed_json, run_cli
from torch import Tensor, nn

from l0compress.data import Data
from l0compress.errors import InputError, NothingToPruneError, PlanError, TargetError
from l0compress.gates.attach import compact, gate
from l0compress.gates.reach import smallest_cost, smallest_keep
from l0compress.graph import CapturedGraph, KeepPlan, capture, cost, find_groups
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.graph.groups.resource import Counted
from l0compress.graph.nodes.protection import Protection
from l0compress.training.budget import Budget, FixedPenalty
from l0compress.training.descent import descend
from l0compress.training.finetune import finetune
from l0compress.training.harden import harden
from l0compress.training.limits import Limits
from l0compress.training.settings import FinetuneSettings, GateSettings


class Branch(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = (
            nn.Conv2d(width, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.norm(self.up(x)).relu())


class Images(nn.Module):
    """A stream of 12 channels and two branches that may go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), Branch(12, 20), Branch(12, 16)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


class Tokens(nn.Module):
    """Attention with four heads of 6, four queries to a key, and a block of 24."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 16)
        self.query, self.key, self.value = nn.Linear(16, 24), nn.Linear(16, 12), nn.Linear(16, 12)
        self.out, self.up, self.down = nn.Linear(24, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        q, k, v = (part.unflatten(-1, (-1, 6)).transpose(1, 2) for part in (self.query(x), self.key(x), self.value(x)))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(self.up(x).relu())
        return self.head(x.mean(1))


def images() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(Images().eval(), (torch.randn(2, 3, 6, 6),))


def tokens() -> CapturedGraph:
    torch.manual_seed(0)
    return capture(Tokens().eval(), (torch.randint(11, (2, 5)),))


MODELS = {"images": images(), "tokens": tokens()}
# What a layer returns, as a dimension of its weight.
OUTPUTS = {"table": 1}  # all others return the rows of their weights


def check_kept(dense: CapturedGraph, small: CapturedGraph, layers: list[str]) -> None:
    before, after = dense.state(), small.state()
    for layer in layers:
        for name, weight in before.items():
            if name.startswith(f"{layer}.") and name.endswith("weight"):
                dim = OUTPUTS.get(layer, 0)
                assert name in after, name
                assert after[name].shape[dim] == weight.shape[dim], name


def check_floors(groups: Groups, plan: KeepPlan, share: float, small: dict[str, Tensor]) -> None:
    """Moves of every group, and channels on the shapes of the small graph where a move is one channel."""
    for group in groups.groups:
        kept = int(plan.keep[list(group.moves)].sum())
        assert kept >= math.ceil(share * len(group.moves) - 1e-9), group.name
        if group.kind == "channels" and share:
            name, _, dim = group.where[0].rpartition(":")
            assert small[name].shape[int(dim)] == kept


KEEP = {
    "images": ["stem", "first.up", "first.down", "second", "head"],
    "tokens": ["table", "query", "key", "out", "up"],
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("model", MODELS)
def test_no_plan_violates_what_is_to_be_kept(model: str, seed: int) -> None:
    dense, layer = MODELS[model], KEEP[model][seed]
    share = (0.5, 0.1, 0.3, 0.0, 0.9)[seed]
    groups = find_groups(dense.protected(keep=layer, min_density=share))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(groups.num_moves, generator=generator, dtype=torch.float64)
    order = scores.argsort().tolist()
    least = KeepPlan(groups, smallest_keep(groups, scores))
    limits = Limits.counted(groups, {"params": max(least.cost.params, cost(dense).params // 2)})
    cut = descend(limits, lambda now: torch.rand(now.groups.num_moves, generator=generator), lambda _, small: small)
    for plan in (least, KeepPlan.random(groups, 0.2, seed), KeepPlan.without(groups, order), cut.end.plan):
        small = shrink(dense, plan)
        check_kept(dense, small, [layer])
        check_floors(groups, plan, share, small.state())
    check_kept(dense, cut.end.graph, [layer])


@pytest.mark.parametrize("model", MODELS)
def test_what_is_to_be_kept_survives_compaction(model: str) -> None:
    dense, layer = MODELS[model], KEEP[model][1]
    gated = gate(dense.protected(keep=layer, min_density=0.4))
    before = {group.name + group.kind: len(group.moves) for group in gated.groups.groups}
    for seed in range(3):
        with torch.no_grad():
            gated.gates.log_alpha.copy_(
                torch.randn(gated.groups.num_moves, generator=torch.Generator().manual_seed(seed)) * 9 - 9
            )
        gated = compact(gated).gated
        check_kept(dense, gated.graph(), [layer])
        assert all(count >= 0 for _, count in gated.groups.floors.sets())
    least = KeepPlan(gated.groups, smallest_keep(gated.groups, torch.zeros(gated.groups.num_moves)))
    for group in gated.groups.groups:
        left = int(least.keep[list(group.moves)].sum())
        assert left >= math.ceil(0.4 * before[group.name + group.kind] - 1e-9), group.name
    check_kept(dense, shrink(gated.graph(), least), [layer])


@pytest.fixture(scope="module")
def dense() -> CapturedGraph:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 3))
    return capture(model, (torch.zeros(2, 8),))


RUNS = [
    ("l0", "structured", 6), ("l0", "weights", 4), ("l0", "both", 4), ("fisher", "structured", 0),
    ("magnitude", "structured", 0), ("magnitude", "weights", 2), ("layer-magnitude", "weights", 2),
]  # fmt: skip


@pytest.mark.parametrize(("method", "granularity", "epochs"), RUNS)
def test_no_run_violates_what_is_to_be_kept(dense: CapturedGraph, method, granularity, epochs) -> None:
    data = Data(train=blobs(), val=blobs(seed=1))
    early = GateSettings(learning_rate=0.3, multiplier_rate=0.3, log_alpha=0.0, compact_below=0.2)
    chosen = replace(QUICK, method=method, granularity=granularity, epochs=epochs, gates=early)
    chosen = replace(chosen, keep="0", min_density=[0.1, "2=0.6"])
    result = finetune(dense, data, "params=0.62" if granularity == "both" else "params=0.75", settings=chosen)
    kept, second = result.small.state()["0.weight"], result.small.state()["2.weight"]
    assert kept.shape == (16, 8)
    if granularity != "both":
        assert bool((kept != 0).all())
    if granularity == "weights":
        assert int((second != 0).sum()) >= 0.6 * 16 * 20
        assert int((result.small.state()["4.weight"] != 0).sum()) >= 0.1 * 60
    else:
        assert second.shape[0] >= 0.6 * 20
    assert bool((result.folded.state()["0.weight"] != 0).any())


@pytest.mark.parametrize("granularity", ["structured", "weights"])
def test_a_fixed_penalty_keeps_it_too(dense: CapturedGraph, granularity) -> None:
    gated = gate(dense.protected(keep="0", min_density=0.5), granularity=granularity)
    with torch.no_grad():
        for gates in gated.gate_parameters().values():
            gates.fill_(-5.0)
    plan = harden(gated, FixedPenalty(gated, 1.0), allow_untrained=True)
    small = gated.shrink(plan).state()
    assert small["0.weight"].shape == (16, 8) and bool((small["0.weight"] != 0).all())
    left = small["2.weight"].shape[0] / 20 if granularity == "structured" else (small["2.weight"] != 0).double().mean()
    assert left >= 0.5


def test_a_layer_that_is_kept_does_not_go_as_a_whole_either() -> None:
    dense = MODELS["images"]
    assert {g.name for g in find_groups(dense).groups if g.can_vanish} == {"first.up", "second.up"}
    # Without what it reads a layer would be a constant, and without a reader nothing.
    for layer in ("first.down", "first.norm"):
        groups = find_groups(dense.protected(keep=layer))
        assert "first.up" not in {g.name for g in groups.groups if g.can_vanish}


def test_a_glob_speaks_of_whole_modules_and_of_what_a_layer_returns() -> None:
    dense = MODELS["images"]

    def cut(**protected) -> list[str]:
        return [group.name for group in find_groups(dense.protected(**protected)).groups]

    assert cut() == ["stem", "first.up", "second.up"]
    assert cut(keep="first") == cut(keep="first.*") == cut(keep=["first.up", "first.down"]) == ["second.up"]
    assert cut(keep="*.up") == ["stem"]
    assert cut(keep="second.norm") == cut(keep="second.up.weight") == ["stem", "first.up"]
    assert cut(keep="head") == cut()  # what it reads belongs to others
    with pytest.raises(NothingToPruneError, match=r"it is to be kept \(keep '\*'\)"):
        find_groups(dense.protected(keep="*"))


def test_what_is_frozen_by_request_is_reported_as_such() -> None:
    groups = find_groups(MODELS["images"].protected(keep="first.up"))
    found = {(place.where, place.dim): place.reason for place in groups.frozen}
    for where in ("first.up.weight", "first.up.bias", "first.norm.weight"):
        assert found[where, 0] == "it is to be kept (keep 'first.up')"
    assert found["first.down.weight", 1] == "it is to be kept (keep 'first.up')"
    assert found["head.weight", 0] == "it is part of the model's output"


def test_the_last_share_that_matches_counts_and_a_number_is_for_the_rest() -> None:
    groups = find_groups(MODELS["images"].protected(min_density=["first=0.5", "*.up=0.25", "second.up=1", 0.1]))
    least = {name: int(count) for name, count in zip(groups.floors.names, groups.floors.least, strict=True)}
    assert least == {"stem channels": 6, "first.up channels": 5, "second.up channels": 16}
    assert not any(group.can_vanish for group in groups.groups)


def test_a_plan_by_hand_that_leaves_too_little_is_refused() -> None:
    groups = find_groups(MODELS["images"].protected(min_density=0.5))
    with pytest.raises(PlanError) as error:
        KeepPlan.from_kept(groups, {"first.up channels": range(9)})
    assert str(error.value) == (
        "this plan would leave 9 moves of 'first.up channels', but 10 have to stay (min_density). Nothing was changed. "
        "Keep more of them, or ask for a lower min_density."
    )


@pytest.mark.parametrize(
    ("protected", "message"),
    [
        ({"keep": "frist.*"}, r"keep 'frist\.\*' matches no layer of the model\. Nothing was changed\. The nearest "
         r"names are 'first', .*; l0compress inspect lists all groups\."),
        ({"min_density": "thrid=0.5"}, r"min_density 'thrid' matches no layer of the model\. .*"),
        ({"min_density": 1.5}, r"min_density 1\.5: expected a share between 0 and 1, or GLOB=SHARE\. Nothing was "
         r"changed\. Write for example 0\.1, or layer1\.\*=0\.5\."),
        ({"min_density": "stem=half"}, r"min_density 'stem=half': expected a share between 0 and 1, or GLOB=SHARE\..*"),
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_meant(protected, message) -> None:
    with pytest.raises(InputError) as error:
        MODELS["images"].protected(**protected)
    assert re.fullmatch(message, str(error.value))


def test_settings_refuse_a_share_that_is_none() -> None:
    with pytest.raises(InputError, match="expected a share between 0 and 1"):
        FinetuneSettings(min_density=["0.1", "stem=2"])
    with pytest.raises(InputError, match=r"min_density=True: expected text or a number, or a list of such\."):
        FinetuneSettings(min_density=True)
    assert Protection.of(FinetuneSettings(keep=["a", "b"]).keep).keep == ("a", "b")


def test_what_is_out_of_reach_is_said_with_the_limit_in_the_way() -> None:
    dense = MODELS["images"]
    whole = cost(dense).params
    graph = dense.protected(keep=["first", "head"], min_density="second.up=0.25")
    least = smallest_cost(Counted(find_groups(graph), "params"))
    ask = math.ceil(least / whole * 1000 + 1) / 1000
    with pytest.raises(TargetError) as error:
        Budget(gate(graph), {"params": 0.5, "macs": 0.99})
    assert str(error.value) == (
        f"Target params=0.5: at most {whole // 2:,} parameters cannot be reached. With everything removed that can be "
        f"removed, {least:,} of {whole:,} stay ({least / whole:.4f}). In the way: keep 'first', min_density "
        f"'second.up=0.25'. Nothing was changed. Ask for params={ask} or more, or for less that has to "
        "stay."
    )
    unprotected = smallest_cost(Counted(find_groups(dense), "params"))
    assert unprotected < whole // 2


def test_limits_go_with_copies_and_pickles() -> None:
    gated = gate(MODELS["images"].protected(keep="stem", min_density=0.5))
    for other in (copy.deepcopy(gated), pickle.loads(pickle.dumps(gated))):
        assert other.groups.graph.protection == gated.groups.graph.protection
        assert torch.equal(other.groups.floors.least, gated.groups.floors.least)
    with torch.no_grad():
        gated.gates.log_alpha.copy_(torch.arange(gated.groups.num_moves) - 20.0)
    smaller = compact(gated).gated
    again = pickle.loads(pickle.dumps(smaller))
    assert torch.equal(again.groups.floors.least, smaller.groups.floors.least)
    assert [g.can_vanish for g in again.groups.groups] == [g.can_vanish for g in smaller.groups.groups]


def test_the_command_line_keeps_and_inspects(mlp_pt2, blobs_npz, tmp_path) -> None:
    whole, held = (printed_json("inspect", mlp_pt2, "--json", *more) for more in ((), ("--min-density", "0.5")))
    assert held["smallest"]["params"] > whole["smallest"]["params"]
    frozen = run_cli("inspect", mlp_pt2, "--keep", "0")
    assert frozen.exit_code == 2 and "it is to be kept (keep '0')" in " ".join(frozen.stderr.split())
    run = tmp_path / "run"
    done = run_cli(
        "finetune", mlp_pt2, "--data", blobs_npz, "--target", "params=0.8", "--epochs", "0", "--min-density", "0.5",
        "--min-density", "0=0.75", "-o", run,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert 'min_density = [\n    "0.5",\n    "0=0.75",\n]' in (run / "config.toml").read_text()
    refused = run_cli("finetune", mlp_pt2, "--data", blobs_npz, "--target", "params=0.8", "--keep", "nothing.*")
    assert refused.exit_code == 2
    assert "keep 'nothing.*' matches no layer of the model." in " ".join(refused.stderr.split())
