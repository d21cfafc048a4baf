"""Several processes of one run, started as a launcher starts them, from a server that has torch loaded already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PATIENCE = 120
_LOADED = [
    *("torch", "accelerate", "torch.distributed.fsdp"),
    *("l0compress.cli.commands.finetune", "l0compress.pipeline.family_run", "ranks"),
]


@dataclass(frozen=True)
class Ended:
    """What a process left: its exit code (negative: the signal), and what it said."""

    code: int | None
    out: str
    err: str


@dataclass(frozen=True)
class Started:
    """Processes that are running."""

    processes: list[ForkServerProcess]
    folder: Path

    def ended(self) -> list[Ended]:
        """Wait for all of them."""
        for process in self.processes:
            process.join(PATIENCE)
        said = [[(self.folder / f"{name}{rank}").read_text() for name in ("out", "err")] for rank in self._ranks]
        return [Ended(process.exitcode, *each) for process, each in zip(self.processes, said, strict=True)]

    @property
    def _ranks(self) -> range:
        return range(len(self.processes))


@contextmanager
def ranks(size: int, job: Callable[..., Any], *arguments: Any, folder: Path) -> Iterator[Started]:
    """``size`` processes that call ``job`` with the same arguments; what they say goes to files in ``folder``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_run, args=(rank, size, port, folder, job, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        yield Started(processes, folder)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def told(size: int, job: Callable[..., Any], *arguments: Any, folder: Path) -> list[Ended]:
    """What ``size`` processes that call ``job`` leave."""
    with ranks(size, job, *arguments, folder=folder) as started:
        return started.ended()


def command(*words: Any) -> None:
    """A job: the command line."""
    from l0compress.cli.app import main

    sys.argv = ["l0compress", *map(str, words)]
    sys.excepthook = sys.__excepthook__
    main()


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """Two runs came to the same, in numbers within a tolerance."""
    assert one["kept"] == other["kept"]
    assert one["code"] == other["code"]
    for before, after in zip(one["rows"], other["rows"], strict=True):
        for name, value in before.items():
            expected = pytest.approx(value, abs=tolerance) if isinstance(value, float) else value
            assert after[name] == expected, name
    assert_close(one["state"], other["state"], tolerance)


def assert_close(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """Two states have the same tensors within a tolerance, but for random states."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if isinstance(tensor, Tensor) and not name.startswith("random."):
            torch.testing.assert_close(other[name], tensor, rtol=tolerance, atol=tolerance)


def _run(rank: int, size: int, port: int, folder: Path, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{name}{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, number)
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    job(*arguments)
