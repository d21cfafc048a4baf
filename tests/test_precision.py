"""Lower precision in forward passes: the same budgets, scaled losses in float16, and runs that go on bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import l0compress as l0
from l0compress.errors import InputError
from l0compress.training.finetune import FinetuneResult, finetune
from l0compress.training.optim import update_
from l0compress.training.settings import FinetuneSettings, GateSettings
from l0compress.training.state_dicts import StateDict, Stateful

QUICK = FinetuneSettings(
    epochs=4, batch_size=16, gates=GateSettings(share=0.5, learning_rate=0.2, multiplier_rate=0.3, many_steps=0)
)


@dataclass
class Shelf:
    """Keeps every state, with plain values as a file would hold them."""

    start: StateDict | None = None
    kept: list[StateDict] = field(default_factory=list)

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        del must
        found = state.state_dict()
        plain = {name: value for name, value in found.items() if not isinstance(value, Tensor)}
        tensors = {name: value.clone() for name, value in found.items() if isinstance(value, Tensor)}
        self.kept.append({**json.loads(json.dumps(plain, allow_nan=False)), **tensors})


def run(shelf: Shelf | None = None, **changes: Any) -> FinetuneResult:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    part = l0.Split((x,), x[:, :3].argmax(1))
    graph = l0.capture(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)), (x[:2],))
    return finetune(graph, l0.Data(part, part), {"macs": 0.5}, settings=replace(QUICK, **changes), checkpoints=shelf)


def same_bits(one: FinetuneResult, other: FinetuneResult) -> bool:
    return all(torch.equal(tensor, other.small.state()[name]) for name, tensor in one.small.state().items())


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.02), ("float16", 0.005)])
def test_lower_precision_follows_float32(precision: str, tolerance: float) -> None:
    whole, lower = run(), run(precision=precision)
    assert not same_bits(whole, lower)
    for before, after in zip(whole.history, lower.history, strict=True):
        assert after.loss == pytest.approx(before.loss, rel=tolerance)


def test_bf16_is_an_older_spelling() -> None:
    assert same_bits(run(bf16=True), run(precision="bfloat16"))


def test_two_precisions_contradict_each_other() -> None:
    with pytest.raises(InputError) as refused:
        FinetuneSettings(bf16=True, precision="float16")
    message = "bf16 and precision='float16' contradict each other. Nothing was changed. Omit one of them."
    assert str(refused.value) == message


def test_a_run_in_float16_goes_on_bit_for_bit_from_its_scale() -> None:
    shelf = Shelf()
    whole = run(shelf, precision="float16")
    for position in (5, len(shelf.kept) // 2 + 2):
        start = shelf.kept[position]
        assert start["scaler"]["_growth_tracker"] > 0
        assert same_bits(run(Shelf(start), precision="float16"), whole)
    assert "scaler" not in run_kept()


def run_kept() -> StateDict:
    shelf = Shelf()
    run(shelf)
    return shelf.kept[0]


def test_gradients_that_overflow_are_no_step() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(weight.sum()).backward()
    assert weight.grad is not None
    weight.grad[0] = float("inf")
    update_([weight], [optimizer], clip=1.0, scaler=scaler)
    assert torch.equal(weight, torch.ones(2))
    assert scaler.get_scale() == 2.0**15
    scaler.scale(3 * weight.sum()).backward()
    update_([weight], [optimizer], clip=None, scaler=scaler)
    expected = nn.Parameter(torch.ones(2))
    plain = torch.optim.AdamW([expected], lr=0.1)
    (3 * expected.sum()).backward()
    plain.step()
    torch.testing.assert_close(weight, expected)
