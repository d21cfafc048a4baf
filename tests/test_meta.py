"""Models on the meta device, which have shapes and no values: captured, gated and counted as those that have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import l0compress as l0


def convolutions() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 12), nn.Linear(12, 4))


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    return nn.Sequential(nn.Embedding(50, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("make", "example"), [(convolutions, torch.zeros(2, 3, 6, 6)), (attention, torch.zeros(2, 5, dtype=torch.long))]
)
def test_shapes_alone_are_captured_gated_and_counted(make: type[nn.Module], example: torch.Tensor) -> None:
    real = l0.capture(make().eval(), (example,))
    with torch.device("meta"):
        shapes = l0.capture(make().eval(), (example.to("meta"),))
    assert {tensor.device.type for tensor in shapes.state().values()} == {"meta"}
    assert l0.cost(shapes) == l0.cost(real)
    budgets = [l0.Budget(l0.gate(graph), {"macs": 0.5}) for graph in (shapes, real)]
    assert budgets[0].target == budgets[1].target
    assert torch.equal(*(budget.expected_cost() for budget in budgets))
    groups = [[(each.name, each.kind, len(each.moves)) for each in budget.gated.groups.groups] for budget in budgets]
    assert groups[0] == groups[1]
