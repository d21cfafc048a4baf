"""A batch in parts: what each process computes of it, and what it computes one after another.

requires: a batch that all processes have, and the same random state in all of them.
ensures:  the parts' losses add up to the batch's, with the same draw of the gates in all of them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from l0compress.devices import device_state
from l0compress.errors import DataError, InputError
from l0compress.gates.hard_concrete import drawing_from
from l0compress.training.losses import Objective, Share
from l0compress.training.processes import Processes
from l0compress.training.randomness import set_torch_states_, torch_states

_ROUNDING = 1e-3


@dataclass(frozen=True)
class Part:
    """Some rows of a batch.

    Attributes:
        number: which of the parts of all processes.
        rows: which samples.
        share: what they make of the batch's loss.
    """

    number: int
    rows: slice
    share: Share


@dataclass(frozen=True)
class Division:
    """How batches are divided.

    Attributes:
        processes: each gets a part.
        accumulate: the most parts that each of these is computed in.
        least: the fewest samples that the network can be run on.
    """

    processes: Processes
    accumulate: int = 1
    least: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether nothing is divided."""
        return self.processes.is_alone and self.accumulate == 1

    def check(self, count: int) -> None:
        """Refuse a batch of ``count`` samples that is too small for the processes.

        Raises:
            DataError: it is.
        """
        size = self.processes.size
        if count < size * self.least:
            raise DataError(
                f"A batch has {count} sample{'' if count == 1 else 's'}, too few for {size} processes with at least "
                f"{self.least} each.",
                fix=f"Pass --batch-size {size * self.least} or more, or start fewer processes.",
            )

    def parts(self, objective: Objective, targets: Tensor | None, count: int) -> list[Part]:
        """This process's parts of a batch of ``count`` samples with these targets.

        Raises:
            DataError: the batch is too small for the processes.
        """
        if not self.processes.is_alone:
            self.check(count)
        own = self.processes.rows(count)
        # The same number in all processes, which exchange statistics in each part.
        several = max(1, min(self.accumulate, count // (self.processes.size * self.least)))
        size, first = own.stop - own.start, self.processes.rank * several
        cuts = [own.start + size * position // several for position in range(several + 1)]
        return [
            Part(first + position, rows, objective.share_of(targets, rows, count))
            for position, rows in enumerate(map(slice, cuts, cuts[1:]))
        ]


def check_adds_up(objective: Objective, outputs: Any, targets: Tensor) -> None:
    """Refuse a loss of the user's own that is no mean over samples, so that those of parts do not add up.

    Raises:
        InputError: on these outputs, halves of the batch give something else than the whole.
    """
    count = len(targets)
    whole = float(objective.loss(outputs, targets, None))
    halves = [slice(0, count // 2), slice(count // 2, count)] if count > 1 else []
    added = sum(
        float(
            objective.loss(rows_of(outputs, rows, count), targets[rows], None, objective.share_of(targets, rows, count))
        )
        for rows in halves
    )
    if halves and not math.isclose(whole, added, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        raise InputError(
            f"The loss of a batch is {whole:.6g}, but the shares of its halves add up to {added:.6g}: it is not a mean "
            "over samples, and cannot be divided.",
            fix="Return the mean over samples, or train in one process without --accumulate.",
        )


def rows_of(outputs: Any, rows: slice, count: int) -> Any:
    """Some rows of what a model returned for ``count`` samples; what has no rows stays."""

    def taken(leaf: Any) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.shape[:1] == (count,) else leaf

    return pytree.tree_map(taken, outputs)


class PartNoise:
    """The randomness of one step in parts: gates draw the same in each of them, everything else differently.

    The global random state afterwards is that of a step in which the gates alone have drawn.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._states = torch_states(device)
        self._name = "torch" if device_state(device) is None else "device"
        self._start = self._states[self._name]
        self._gates = torch.Generator(device)
        self._seed = zlib.crc32(self._start.cpu().numpy().tobytes())

    @contextmanager
    def of(self, network: nn.Module, number: int) -> Iterator[None]:
        """The randomness of a part, by its number over all processes."""
        self._gates.set_state(self._start)
        torch.manual_seed((self._seed << 16) + number)
        with drawing_from(network, self._gates):
            yield

    def end_(self) -> None:
        """Go on from what the gates have drawn."""
        set_torch_states_({**self._states, self._name: self._gates.get_state()}, self._device)
