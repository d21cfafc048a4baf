"""What a rival returns, and how its own knob is turned until the budget is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from l0compress.errors import L0Error
from l0compress.graph.capture import USER_CODE_ERRORS, CapturedGraph
from l0compress.graph.groups.cost import Cost, cost

# 1/1024 of its channels is less than one channel of any network of the benchmark.
_STEPS = 10


class NotCut(Exception):
    """A rival cannot cut a network, or not as far as the budget; in words."""


class Made(NamedTuple):
    """Attributes:
    last, best: the network after the last epoch, and after the best by validation; the same where nothing is trained.
    cost: of the captured network, counted as ours is.
    """

    last: nn.Module
    best: nn.Module
    cost: Cost


@contextmanager
def refusals_of(project: str) -> Iterator[None]:
    """Whatever another project says against a network, as NotCut; what we say ourselves goes through."""
    try:
        yield
    except (L0Error, NotCut):
        raise
    except USER_CODE_ERRORS as error:
        raise NotCut(f"{project}: {type(error).__name__}: {error}") from error


def fitted(cut: Callable[[float], CapturedGraph], unit: str, most: int) -> tuple[float, CapturedGraph]:
    """The largest network within the budget, and the share of channels that was cut for it.

    Args:
        cut: makes the network without a share of its channels, above 0 and below 1.
        unit: what is counted of it.
        most: how much of that there may be.

    Raises:
        NotCut: no share that was tried leaves as little.

    >>> import torch
    >>> from l0compress.graph import capture
    >>> def narrow(share):
    ...     return capture(nn.Linear(8, max(1, round(100 * (1 - share))), bias=False), (torch.zeros(2, 8),))
    >>> share, graph = fitted(narrow, "params", 8 * 25)
    >>> cost(graph).params, round(share, 2)
    (200, 0.75)
    """
    low, high, found = 0.0, 1.0, None
    for _ in range(_STEPS):
        share = (low + high) / 2
        graph = cut(share)
        if cost(graph).get(unit) <= most:
            high, found = share, (share, graph)
        else:
            low = share
    if found is None:
        raise NotCut(f"no share of its channels leaves {most:,} {unit} or fewer")
    return found
