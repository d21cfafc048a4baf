"""Whether a launcher (``torchrun``, ``accelerate launch``) started this process as one of several. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from l0compress.errors import InputError

_RANK, _SIZE, _LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"


@dataclass(frozen=True)
class Launch:
    """One of several processes that a launcher started.

    Attributes:
        rank: which of them, counted from 0.
        size: how many there are, on all hosts.
        local_rank: which of those on this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1


def launched() -> Launch:
    """Read from the environment which process this is; one by itself where no launcher says otherwise.

    >>> launched()
    Launch(rank=0, size=1, local_rank=0)

    Raises:
        InputError: the environment contradicts itself.
    """
    size = _number(_SIZE, 1)
    if size == 1:
        return Launch()
    rank = _number(_RANK, None)
    if not rank < size:
        raise InputError(
            f"The environment says {_RANK}={rank} with {_SIZE}={size}, but ranks are counted from 0.",
            fix="Start the processes with torchrun or accelerate launch, which set both.",
        )
    return Launch(rank, size, _number(_LOCAL_RANK, rank))


def says_several() -> bool:
    """Whether the environment speaks of several processes, however wrongly."""
    return os.environ.get(_SIZE, "1") != "1"


def says_first() -> bool:
    """Whether the environment calls this process the first, or does not say."""
    return os.environ.get(_RANK, "0") == "0"


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal() or (name == _SIZE and int(text) == 0):
        what = f"{name}={text!r}" if text else f"no {name}, although {_SIZE} is above 1"
        raise InputError(
            f"The environment has {what}.",
            fix=f"Start the processes with torchrun or accelerate launch, or unset {_SIZE}.",
        )
    return int(text)
