"""Where the trials of a sweep run: processes of this machine, or tasks of a Ray cluster that start such processes."""

from __future__ import annotations

import os
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l0compress.errors import InputError
from l0compress.loading.references import import_extra
from l0compress.pipeline.sweep_process import run_and_wait, started

_LOST = "its process was lost; the log file says how far it came"
_PATIENCE = 10.0


class UnderWay(ABC):
    """A trial that was begun."""

    @abstractmethod
    def exit_code(self) -> int | None:
        """What the process ended with, None while it runs or waits."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the process to keep its state and end."""

    @abstractmethod
    def wait(self) -> None:
        """Return when the process has ended."""


class Place(ABC):
    """Where trials run.

    Attributes:
        jobs: how many trials at a time.
        threads: what each of them has.
        hears_interrupts: whether Ctrl-C reaches the trials by itself.
    """

    jobs: int
    threads: int
    hears_interrupts: bool

    @abstractmethod
    def begin(self, arguments: Sequence[str], log: Path) -> UnderWay:
        """Run ``python ARGUMENTS`` in the current folder, its stderr in ``log``."""


class Here(Place):
    """This machine: processes of this same Python, which share its threads."""

    hears_interrupts = True

    def __init__(self, jobs: int | None) -> None:
        self.jobs = jobs or 1
        self.threads = max(1, (os.cpu_count() or 1) // self.jobs)

    def begin(self, arguments: Sequence[str], log: Path) -> UnderWay:
        return _Process(started(arguments, log))


class _Process(UnderWay):
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def exit_code(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        self._process.wait()


class OnRay(Place):
    """A Ray cluster whose nodes have l0compress and see the same files at the same paths.

    Each trial is a task that asks for as many CPUs as it has threads, and for one GPU where it trains on one; Ray says
    on which node it runs. A trial whose node is lost has failed: the same command goes on with it.

    Raises:
        InputError: Ray is not installed, or no cluster answers at ``address``.
    """

    hears_interrupts = False

    def __init__(self, address: str, jobs: int | None, *, on_gpu: bool) -> None:
        self.ray: Any = import_extra("ray", extra="ray", purpose="A sweep on a Ray cluster")
        try:
            _knock(address)
            self.ray.init(address=address, include_dashboard=False if address == "local" else None, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--ray {address!r}: no Ray cluster answers ({str(error).splitlines()[0]}).",
                fix="Start one with `ray start --head`, or pass --ray local for one of this machine alone.",
            ) from error
        nodes = [node["Resources"].get("CPU", 0) for node in self.ray.nodes() if node["Alive"]]
        widths = [int(cpus) for cpus in nodes if cpus >= 1] or [1]
        self.jobs = jobs or len(widths)
        # No node may be too small for a trial, or that trial would wait for ever.
        self.threads = max(1, min(min(widths), sum(widths) // self.jobs))
        self._gpus = int(on_gpu)

    def begin(self, arguments: Sequence[str], log: Path) -> UnderWay:
        # Interrupted tasks are not failures of Ray's: none of them may run again by itself.
        task = self.ray.remote(num_cpus=self.threads, num_gpus=self._gpus, max_retries=0)(run_and_wait)
        log = log.resolve()
        stop = log.with_suffix(".stop")
        stop.unlink(missing_ok=True)
        return _Task(self.ray, task.remote(list(arguments), str(log), str(Path.cwd()), str(stop)), log, stop)


class _Task(UnderWay):
    def __init__(self, ray: Any, result: Any, log: Path, stop: Path) -> None:
        self._ray, self._result, self._log, self._stop = ray, result, log, stop

    def exit_code(self) -> int | None:
        if not self._ray.wait([self._result], timeout=0)[0]:
            return None
        try:
            return int(self._ray.get(self._result))
        except self._ray.exceptions.RayError as error:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"\nError: {_LOST} ({str(error).splitlines()[0]})\n")
            return 1

    def stop(self) -> None:
        self._stop.touch()
        self._ray.cancel(self._result)  # for tasks that still wait for their turn

    def wait(self) -> None:
        self._ray.wait([self._result])
        self._stop.unlink(missing_ok=True)


def _knock(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray would try for minutes, and may end this process then."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


@contextmanager
def place_of(address: str | None, jobs: int | None, *, device: str) -> Iterator[Place]:
    """This machine, or the Ray cluster at ``address`` for as long as the context lasts.

    Raises:
        InputError: as :class:`OnRay`.
    """
    if address is None:
        yield Here(jobs)
        return
    place = OnRay(address, jobs, on_gpu=not device.startswith("cpu"))
    try:
        yield place
    finally:
        place.ray.shutdown()
