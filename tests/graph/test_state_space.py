"""State-space models: the inner width, the state and the step's rank go from a selective scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import table
from proofs import assert_exact, assert_exports, assert_gateable, graph_of, prunable_share
from torch import Tensor, nn

from l0compress.graph import CapturedGraph

pytestmark = pytest.mark.slow


class SelectiveScan(nn.Module):
    """Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", algorithm 2, step by step."""

    def __init__(self, width: int = 8, inner: int = 12, state: int = 4, rank: int = 3) -> None:
        super().__init__()
        self.sizes = (rank, state, state)
        self.inside, self.outside = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.conv = nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        self.project, self.step = nn.Linear(inner, sum(self.sizes), bias=False), nn.Linear(rank, inner)
        self.decay, self.skip = nn.Parameter(torch.zeros(inner, state)), nn.Parameter(torch.zeros(inner))
        self.head = nn.Linear(width, 3)

    def forward(self, u: Tensor) -> Tensor:
        x, z = self.inside(u).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : u.shape[1]]).transpose(1, 2)
        rank, into, out = self.project(x).split(self.sizes, -1)
        step, decay = F.softplus(self.step(rank)), -torch.exp(self.decay)
        h, ys = x.new_zeros(x.shape[0], x.shape[2], self.sizes[1]), []
        for t in range(u.shape[1]):
            dt = step[:, t, :, None]
            h = torch.exp(dt * decay) * h + dt * into[:, t, None, :] * x[:, t, :, None]
            ys.append((h @ out[:, t, :, None]).squeeze(-1))
        y = torch.stack(ys, 1) + x * self.skip
        return self.head(self.outside(y * F.silu(z)))


def selective_scan() -> CapturedGraph:
    return graph_of(SelectiveScan(), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1)))


def mamba() -> CapturedGraph:
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
    config = transformers.MambaConfig(**sizes, expand=2, time_step_rank=3, use_cache=False)
    ids = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    return graph_of(transformers.MambaForCausalLM(config), input_ids=ids)


BUILD = {"selective scan": selective_scan, "Mamba": mamba}


@pytest.mark.parametrize(
    ("name", "moves", "share"),
    [
        ("selective scan", {"decay channels": 12, "project channels": 4, "project #2 channels": 3}, 0.95),
        ("Mamba", {"channels": 32, "x_proj channels": 4, "x_proj #2 channels": 3}, 0.7),
    ],
)
def test_inner_width_and_state_and_rank_go(name: str, moves: dict[str, int], share: float) -> None:
    groups = assert_exact(BUILD[name]())
    prefix = "backbone.layers.0.mixer"
    found = {key.removeprefix(prefix).lstrip(". "): size for key, size in table(groups).items()}
    assert moves.items() <= found.items()
    assert prunable_share(groups) > share


@pytest.mark.parametrize("name", BUILD)
def test_gates_stand_for_them(name: str) -> None:
    assert_gateable(BUILD[name]())


@pytest.mark.parametrize("name", BUILD)
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    assert_exports(BUILD[name](), tmp_path)
