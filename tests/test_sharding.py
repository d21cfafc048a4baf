"""Weights, gradients and moments divided over processes by FSDP2: the result is that of one process."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Ended, assert_close, assert_same, command, ranks, told
from torch import Tensor, nn

import l0compress as l0
from l0compress.errors import DivergedError, InputError
from l0compress.training.finetune import finetune
from l0compress.training.held import is_divided, whole
from l0compress.training.launch import launched
from l0compress.training.optim import clip_
from l0compress.training.processes import joined
from l0compress.training.settings import FinetuneSettings, GateSettings
from l0compress.training.state_dicts import FINETUNE, GATES, StateDict, Stateful
from l0compress.training.units import Unit

pytest.importorskip("accelerate")

# Gates that close early, so that channels are removed within epochs and between them.
FAST = GateSettings(
    share=0.5, log_alpha=0.0, learning_rate=0.5, multiplier_rate=0.5, many_steps=0,
    compact_below=0.3, compact_every=2, compact_gain=0,
)  # fmt: skip


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 20), nn.Linear(20, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu_(self.up(self.norm(x))))


class Reader(nn.Module):
    """A tied table, a view of a weight, a weight that is one number, and widths that two does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(11, 9), nn.Parameter(torch.randn(6, 9))
        self.blocks, self.scale = nn.ModuleList(Block(9) for _ in range(2)), nn.Parameter(torch.tensor(1.5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x.mean(1) @ self.table.weight.T * self.scale


def reading() -> l0.Data:
    """Of the validation part a batch of one sample is left, of which one of two processes computes nothing."""
    ids = torch.randint(0, 11, (257, 6), generator=torch.Generator().manual_seed(3))
    train, val = (l0.Split((part,), part.mode(1).values) for part in (ids[:65], ids))
    return l0.Data(train, val)


def images() -> l0.Data:
    x = torch.randn(65, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    part = l0.Split((x,), (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 0.5).long())
    return l0.Data(part, part)


def convolutions() -> nn.Module:
    layers = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 3))


NETWORKS = {"reader": (Reader, reading), "convolutions": (convolutions, images)}


@dataclass
class Shelf:
    """Keeps the states after some of the calls: here one in each phase."""

    start: StateDict | None = None
    kept: list[StateDict] = field(default_factory=list)
    calls: int = 0

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        del must
        self.calls += 1
        if self.calls in (9, 20):
            found = state.state_dict()
            self.kept.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in found.items()})


def tuned(network: str = "reader", start: Path | None = None, **changes: Any) -> dict[str, Any]:
    """What a run comes to, and two states on the way."""
    make, read = NETWORKS[network]
    torch.manual_seed(0)
    shelf = Shelf(None if start is None else torch.load(start, weights_only=False))
    model, data = make().eval(), read()
    graph = l0.capture(model, (data.train.take(slice(0, 2)).args[0],))
    settings = FinetuneSettings(**{"epochs": 4, "batch_size": 13, "gates": FAST, "shard": True, **changes})
    result = finetune(graph, data, {"macs": 0.5}, settings=settings, checkpoints=shelf)
    rows = [{k: v for k, v in event.row().items() if "seconds" not in k} for event in result.history]
    found = {"state": result.small.state(), "kept": result.plan.kept(), "rows": rows}
    return {**found, "code": result.small.module().code, "states": shelf.kept}


def tune(path: str, several: dict[str, dict[str, Any]]) -> None:
    """A job: leave what some runs came to."""
    torch.save({name: tuned(**changes) for name, changes in several.items()}, f"{path}.{launched().rank}")


def outcomes(size: int, folder: Path, **several: dict[str, Any]) -> list[dict[str, Any]]:
    ended = told(size, tune, str(folder / "found"), several, folder=folder)
    assert [(each.code, each.err) for each in ended] == [(0, "")] * size
    return [torch.load(folder / f"found.{rank}", weights_only=False) for rank in range(size)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return tuned()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return [found["run"] for found in outcomes(2, tmp_path_factory.mktemp("two"), run={})]


def test_two_processes_reach_what_one_reaches(two: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for each in two:
        assert_same(alone, each, 2e-5)
        assert_same(two[0], each, 0.0)


def test_the_first_has_the_states_that_one_has(two: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Weights and moments, after removals in mid-training and in the final phase."""
    assert [state["stage"] for state in alone["states"]] == [GATES, FINETUNE]
    assert alone["states"][0]["cuts"] > 0
    for found, expected in zip(two[0]["states"], alone["states"], strict=True):
        assert_close(expected, found, 2e-5)
    assert all(state["optimizer.weights.blocks.0.up.weight.exp_avg"].is_meta for state in two[1]["states"])


@pytest.mark.slow
@pytest.mark.parametrize("position", [0, 1])
def test_one_process_goes_on_with_a_state_of_two(
    position: int, two: list[dict[str, Any]], alone: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(two[0]["states"][position], tmp_path / "state")
    assert_same(alone, tuned(start=tmp_path / "state", shard=False), 2e-5)


@pytest.mark.slow
def test_two_go_on_with_a_state_of_one_and_repeat_their_bits(
    two: list[dict[str, Any]], alone: dict[str, Any], tmp_path: Path
) -> None:
    starts = {"gates": alone["states"][0], "final": alone["states"][1], "whole": two[0]["states"][0]}
    for name, state in starts.items():
        torch.save(state, tmp_path / name)
    several = {name: {"start": tmp_path / name, "shard": name != "whole"} for name in starts}
    found = outcomes(2, tmp_path, again={}, **several)[1]
    assert_same(two[1], found.pop("again"), 0.0)
    for each in found.values():
        assert_same(alone, each, 2e-5)


@pytest.mark.slow
def test_four_processes_reach_what_one_reaches(alone: dict[str, Any], tmp_path: Path) -> None:
    for each in outcomes(4, tmp_path, run={}):
        assert_same(alone, each["run"], 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"network": "convolutions", "optimizer": "sgd", "accumulate": 2},
        {"network": "convolutions", "precision": "float16"},
        {"network": "convolutions", "gates": GateSettings(share=0.5)},
        {"network": "convolutions", "activation_l1": 1e-3},
        {"quantization_aware": True, "clip": 0.05},
        {"ternary": True, "distill": False, "method": "fisher"},
    ],
)
def test_divided_weights_change_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    found = outcomes(2, tmp_path, whole={**changes, "shard": False}, divided=changes)
    for each in found:
        assert_same(each["whole"], each["divided"], 2e-5)


def diverge(path: str) -> None:
    """A job: leave why training ended."""
    with pytest.raises(DivergedError) as ended:
        tuned(learning_rate=1e30, optimizer="sgd", clip=None)
    Path(f"{path}.{launched().rank}").write_text(str(ended.value))
    joined().leave_()


@pytest.mark.slow
def test_all_of_them_say_where_a_number_is_not_finite(tmp_path: Path) -> None:
    assert [each.code for each in told(2, diverge, str(tmp_path / "why"), folder=tmp_path)] == [0, 0]
    why = [(tmp_path / f"why.{rank}").read_text() for rank in range(2)]
    assert why[0] == why[1]
    assert re.match(r"The loss became \S+ at step \d+ of epoch \d+\. (Parameter|Node) '", why[0])


def measure(path: str) -> None:
    """A job: what a process has of a network after a step, and how gradients are clipped."""
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32) for _ in range(6)]
    gated = l0.gate(l0.capture(nn.Sequential(*layers), (torch.zeros(2, 32),)))
    count = sum(weight.numel() for weight in gated.weights().values())
    held = joined().divided(gated)
    weights = list(held.parameters_of(gated.weights()).values())
    optimizer = torch.optim.AdamW(weights, fused=True)
    alive: list[int] = []

    def note(*_: Any) -> None:
        parameters = [p for unit in units for p in unit.parameters() if not is_divided(p)]
        alive.append(sum(p.untyped_storage().nbytes() for p in parameters))

    units = [module for module in held.network.modules() if isinstance(module, Unit)][1:]
    for unit in units:
        unit.register_forward_hook(note, prepend=True)
    (100 * held.network(torch.ones(4, 32)).sum()).backward()
    gates = [gated.gates.log_alpha]
    whole_norm = torch.cat([whole(p.grad).flatten() for p in (*weights, *gates) if p.grad is not None]).norm()
    clip_([*weights, *gates], 2.0)
    norm = torch.cat([whole(p.grad).flatten() for p in (*weights, *gates) if p.grad is not None]).norm()
    optimizer.step()
    parts: list[Any] = [*weights, *(p.grad for p in weights)]
    parts += [value for state in optimizer.state.values() for value in state.values() if is_divided(value)]
    storages = (part.to_local().untyped_storage() for part in parts)
    here = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    found = {"here": here, "alive": alive, "count": count, "norms": (float(whole_norm), float(norm))}
    found["given"] = {weight.device.type for weight in gated.weights().values()}
    torch.save(found, f"{path}.{launched().rank}")
    joined().leave_()


def test_each_process_has_its_part_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    assert told(2, measure, str(tmp_path / "found"), folder=tmp_path) == [Ended(0, "", "")] * 2
    for rank in range(2):
        found = torch.load(tmp_path / f"found.{rank}")
        assert found["count"] == 6 * (32 * 32 + 32)
        assert found["here"] == 4 * 4 * found["count"] // 2
        # One layer is whole at a time.
        assert found["alive"] == [4 * found["count"] // 6] * 6
        assert found["given"] == {"meta"}
        assert found["norms"][0] > 100
        assert found["norms"][1] == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"granularity": "both"},
            "shard with granularity='both': it reads whole weights in every step, but each process has a part of them. "
            "Nothing was changed. Pass --granularity structured, or omit --shard.",
        ),
        (
            {"method": "l1"},
            "shard with method='l1': it reads whole weights in every step, but each process has a part of them. "
            "Nothing was changed. Pass --method l0, or one that decides before training, or omit --shard.",
        ),
        (
            {"l2": 0.1},
            "shard with a norm of the weights: it reads whole weights in every step, but each process has a part of "
            "them. Nothing was changed. Pass --method l0 without --l2 and --l1, or omit --shard.",
        ),
        (
            {"optimizer": "torch.optim:Adafactor"},
            "shard with an optimizer of your own: it reads whole weights in every step, but each process has a part of "
            "them. Nothing was changed. Pass --optimizer adamw or sgd, or omit --shard.",
        ),
    ],
)
def test_what_reads_whole_weights_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        FinetuneSettings(shard=True, **changes)
    assert str(refused.value) == message


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_one_message_and_it_goes_on_undivided(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, run = torch.randn(96, 8), tmp_path / "run"
    network = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3))
    torch.export.save(
        torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim("n")},)), tmp_path / "model.pt2"
    )
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=x[:, :3].argmax(1).numpy())
    words = "finetune", tmp_path / "model.pt2", "--data", tmp_path / "data.npz", "--target", "macs=0.5", "-o", run
    more = "--epochs", "400", "--batch-size", "16", "--checkpoint-every", "7", "--shard"
    with ranks(2, command, *words, *more, folder=tmp_path / "said") as started:
        while not (run / "metrics.jsonl").exists() and started.processes[0].is_alive():
            time.sleep(0.01)
        os.kill(started.processes[1].pid or 0, signal.SIGKILL)
        first, second = started.ended()
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    (error,) = (line for line in first.err.splitlines() if line.startswith(("Error", "Traceback")))
    assert error.startswith("Error: Another process of this run has ended, or cannot be reached (")
    (again,) = told(1, command, "finetune", "--resume", run, "--no-shard", "--json", folder=tmp_path / "again")
    assert again.code == 0
    assert json.loads(again.out)["epochs"] == 400
