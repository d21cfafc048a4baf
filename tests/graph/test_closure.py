"""What dies with a plan: heads, their widths, and dimensions that never had a channel.

The random networks of ``test_random_networks.py`` are checked alike.
"""

from __future__ import annotations

import pytest
import torch
from closures import check_closure
from networks import grouped, image, tokens
from test_groups import attention
from torch import nn


@pytest.mark.mostly_slow
@pytest.mark.parametrize("lost", ["every width of a head", "every head but one", "a head and a width"])
def test_heads_and_their_widths(lost: str) -> None:
    layers = {name: nn.Linear(12, width) for name, width in (("q", 16), ("k", 16), ("v", 24))}
    groups = grouped(attention, tokens(), **layers, o=nn.Linear(24, 3))
    keep = [True] * groups.num_moves
    blocks, width = (next(group.moves for group in groups.groups if group.kind == kind) for kind in ("blocks", "width"))
    removed = {
        "every width of a head": width,
        "every head but one": blocks[1:],
        "a head and a width": (blocks[0], width[0]),
    }[lost]
    for move in removed:
        keep[move] = False
    check_closure(groups, keep)


def test_an_empty_dimension_is_not_taken_for_one_that_lost_its_channels() -> None:
    groups = grouped(
        lambda s, x: s.b(torch.cat([s.a(x), x[:, :0]], 1)), image(), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)
    )
    check_closure(groups, [True] * groups.num_moves)
