"""What inspect says: exact text for a small model, shares recomputed from shapes, repeated layers merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import run_cli, save_pt2
from torch import nn

from l0compress.cli.render import listing
from l0compress.graph.groups import Group
from l0compress.loading import ModelSource
from l0compress.pipeline.inspection import inspect
from l0compress.pipeline.repeats import repeated

TEXT = """
  cost              dense  smallest  removable %
  parameters           75         8         89.3
  MACs a sample        66         4         93.9
  bytes of weights    300        32         89.3
  bytes in int8       147        40         72.8

2 groups with 14 moves: what can be removed
  group  kind      channels  params     %  MACs      %  vanishes
  0      channels         6      72  96.0    66  100.0  no
  0      inputs           8      48  64.0    48   72.7  no
A weight between two groups counts in both.
Where a group cannot vanish, one move stays.

Frozen: what stays whole, and why
  reason                                    source  dims  params     %
  linear: it is part of the model's output             2      21  28.0
dims: of parameters. params: elements on them; another dim may still be cut.

Next: l0compress finetune MODEL --data DATA --target macs=0.5
"""


def test_the_text_of_a_small_model(mlp_pt2: Path) -> None:
    expected = f"{mlp_pt2}{TEXT}".strip().replace("finetune MODEL", f"finetune {mlp_pt2}")
    assert run_cli("inspect", mlp_pt2).stdout.strip() == expected


@torch.library.custom_op("l0tests::folded", mutates_args=())
def folded(x: torch.Tensor) -> torch.Tensor:
    return x + x.flip(-1)


folded.register_fake(torch.empty_like)


class WithFolded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(folded(self.a(x)))))


def test_an_operator_from_elsewhere_is_named_with_its_line(tmp_path: Path) -> None:
    save_pt2(WithFolded(), (torch.zeros(2, 4),), tmp_path / "folded.pt2")
    found = inspect(ModelSource(tmp_path / "folded.pt2"))
    ((operator, lines),) = found.unknown
    assert operator == "l0tests::folded"
    assert [line.rpartition(":")[0] for line in lines] == ["test_inspection.py"]
    blamed = {(place.where, place.dim) for place in found.frozen if place.reason.startswith("no rule")}
    assert blamed == {("a.weight", 0), ("a.bias", 0)}


def test_shares_follow_from_parameter_shapes(mlp_pt2: Path) -> None:
    found = json.loads(run_cli("inspect", mlp_pt2, "--json").stdout)
    carried = {"channels": (8 * 6 + 6 + 6 * 3, 8 * 6 + 6 * 3), "inputs": (8 * 6, 8 * 6)}
    for group in found["groups"]:
        params, macs = carried[group["kind"]]
        assert group["params_share"] == pytest.approx(params / 75)
        assert group["macs_share"] == pytest.approx(macs / 66)
    assert found["removable"]["params"] == pytest.approx(1 - 8 / 75)


def test_repeated_layers_are_one_row_and_full_lists_all(tmp_path: Path) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    save_pt2(Deep(), (torch.zeros(2, 4),), tmp_path / "deep.pt2")
    merged, full = (run_cli("inspect", tmp_path / "deep.pt2", *flags).stdout for flags in ((), ("--full",)))
    assert "layers.{0..4}.0  channels     5 \u00d7 6" in merged
    assert "layers.{" not in full and "layers.3.0" in full


def test_positions_that_are_no_rectangle_are_split() -> None:
    groups = [Group(f"a.{i}.{j}", "channels", (n,), 1, 1, ()) for n, (i, j) in enumerate([(0, 0), (0, 1), (1, 0)])]
    assert [name for name, _ in repeated(groups)] == ["a.0.{0,1}", "a.1.0"]


def test_no_line_is_wider_than_the_terminal() -> None:
    rows = [["a.long.name.of.a.layer", "12"], ["b", "3"]]
    assert max(map(len, listing(rows, [False, True], 26))) <= 26
