"""What only training does is told by `inspect`, by a run and in its result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import printed_json, run_cli
from torch import Tensor, nn

import l0compress as l0
from l0compress.errors import LostInCaptureWarning
from l0compress.graph.capture.training_mode import TrainingOnly
from l0compress.pipeline.training_run import result_of
from l0compress.training.events import WARNING, ProgressEvent


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.second(hidden + torch.randn_like(hidden) if self.training else hidden)


LOST = TrainingOnly("randn_like", "", f"test_training_only.py:{Noisy.forward.__code__.co_firstlineno + 2}")
SAID = f"No run does what the model does only in training mode: {LOST.sentence}."


def data() -> l0.Data:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    part = l0.Split((x,), (x[:, 0] > 0).long())
    return l0.Data(train=part, val=part)


def test_a_run_tells_it_once_and_its_result_keeps_it() -> None:
    told: list[ProgressEvent] = []
    settings = l0.FinetuneSettings(epochs=2)
    result = l0.compress(Noisy(), data(), target={"params": 0.8}, settings=settings, on_event=told.append)
    assert [(event.message, event.category) for event in told if event.stage == WARNING] == [
        (SAID, LostInCaptureWarning)
    ]
    assert result_of(result)["training_only"] == [{"what": "randn_like", "module": "", "source": LOST.source}]


def test_who_does_not_listen_is_warned() -> None:
    with pytest.warns(LostInCaptureWarning) as caught:
        l0.compress(Noisy(), data(), target={"params": 0.8}, settings=l0.FinetuneSettings(epochs=2))
    assert [str(warning.message) for warning in caught] == [SAID]


def test_inspect_lists_it(tmp_path: Path, blobs_npz: Path) -> None:
    torch.save(Noisy().state_dict(), tmp_path / "noisy.pt")
    command = ("inspect", tmp_path / "noisy.pt", "--factory", "test_training_only:Noisy", "--data", blobs_npz)
    assert printed_json(*command)["training_only"] == [{"what": "randn_like", "module": "", "source": LOST.source}]
    title = "Lost in capture: what the model does only in training mode, and no run will do"
    assert f"{title}\n  {LOST.sentence}\n" in run_cli(*command).stdout
