"""The processes that train one model together. Each knows the whole of every batch and computes a part of it.

requires: all of them are given the same model, data, target and settings.
ensures:  what they decide is the same in all of them, and is that of one process, but for rounding.

Gradients are averaged after each backward pass rather than by ``DistributedDataParallel``: the network is replaced
whenever closed channels are removed in mid-training, and a wrapper would have to be made anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

from l0compress.errors import InputError, ProcessesError
from l0compress.gates.network import GatedNetwork
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.training.events import OnEvent, unheard
from l0compress.training.held import Held
from l0compress.training.launch import Launch, launched, says_first, says_several
from l0compress.training.settings import FinetuneSettings

Value = TypeVar("Value")


class Processes:
    """One process by itself: nothing is divided, and nobody is asked.

    Attributes:
        launch: which process this is, and how many there are.
    """

    def __init__(self, launch: Launch | None = None) -> None:
        self.launch = Launch() if launch is None else launch

    @property
    def rank(self) -> int:
        """Which of the processes this is, counted from 0."""
        return self.launch.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.launch.size

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.launch.is_first

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.launch.is_alone

    def rows(self, count: int) -> slice:
        """The rows of a batch of ``count`` samples that this process computes.

        >>> [Processes(Launch(rank, 3)).rows(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def placed(self, settings: FinetuneSettings) -> FinetuneSettings:
        """The settings with the device that this process has to itself."""
        return settings

    def listener(self, on_event: OnEvent) -> OnEvent:
        """Who hears of events: the first process speaks for all."""
        return on_event if self.is_first else unheard

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Numbers added up over all processes, each by itself."""
        return list(numbers)

    def highest(self, number: int) -> int:
        """The highest of the numbers that the processes give."""
        return number

    def average_(self, gradients: Iterable[Tensor]) -> None:
        """Put the mean over all processes in the place of every tensor."""

    def say(self, value: Value) -> Value:
        """Hand a value that can be pickled to the others, who :meth:`hear` it; for the first process alone."""
        return value

    def hear(self) -> Any:
        """What the first process says, for the others.

        Raises:
            ProcessesError: there is no other process.
        """
        raise ProcessesError("There is no other process that could say something.")

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What ``make`` returns in the first process, where alone it is called; it can be pickled."""
        return self.say(make()) if self.is_first else self.hear()

    def await_first(self) -> None:
        """Wait until the first process has come here too; it waits for nobody."""
        self.from_first(lambda: None)

    def check_same(self, checksum: str, what: str) -> None:
        """Check that all processes have the same; ``what`` says in a message what that is.

        Raises:
            ProcessesError: names those that differ from the first.
        """

    def divided(self, network: GraphNetwork | GatedNetwork) -> Held:
        """A network whose weights are divided over the processes; one process has all of them.

        What several processes are given loses its weights until they are gathered.
        """
        return Held(network)

    def noticing(self) -> AbstractContextManager[None]:
        """While it lasts, an error of what exchanges weights says that another process is gone."""
        return nullcontext()

    def statistics(self) -> AbstractContextManager[None]:
        """While it lasts, batch norms in training mode count the samples of all processes."""
        return nullcontext()

    def may_speak(self) -> bool:
        """Whether this process is the one that says why the run ends; asked once, when it does."""
        return True

    def part_(self) -> None:
        """After the last word of a run that failed: leave the others, and let them find out who had it."""

    def leave_(self) -> None:
        """Say goodbye to the others; nothing can be asked afterwards."""


ALONE = Processes()


def processes_for(device: str) -> Processes:
    """The processes that this one belongs to, joined when they are first asked for.

    Where a launcher started several, all of them have to ask, or those that do wait for the others.

    Raises:
        InputError: there are several, and Accelerate is not installed; or the device is one that they cannot share.
    """
    launch = launched()
    if not launch.is_alone:
        _check_shared(device, launch)
    return joined()


def joined() -> Processes:
    """As :func:`processes_for`, before it is known on which device they compute.

    Raises:
        InputError: there are several, and Accelerate is not installed.
    """
    launch = launched()
    return ALONE if launch.is_alone else _joined(launch)


def say_last(say: Callable[[], object]) -> None:
    """Call ``say`` if this process is the one that says why the run ends, as far as the others can be asked."""
    if not says_several():
        say()
    elif not _joined.cache_info().currsize:
        if says_first():
            say()
    else:
        processes = _joined(launched())
        if processes.may_speak():
            say()
        processes.part_()


def _check_shared(device: str, launch: Launch) -> None:
    kind, _, number = device.partition(":")
    if number and kind != "cpu" and number != str(launch.local_rank):
        raise InputError(
            f"Device {device!r} is one device, but there are {launch.size} processes.",
            fix=f"Pass --device {kind}: each process takes the device of its own number.",
        )
    if kind not in ("cpu", "cuda"):
        raise InputError(
            f"Device {device!r} cannot be used by {launch.size} processes together.", fix="Pass --device cpu or cuda."
        )


@cache
def _joined(launch: Launch) -> Processes:
    from l0compress.loading.references import import_extra

    import_extra("accelerate", extra="distributed", purpose=f"A run of {launch.size} processes")
    from l0compress.training.accelerated import AcceleratedProcesses

    return AcceleratedProcesses(launch)


def on_own_device(settings: FinetuneSettings, launch: Launch) -> FinetuneSettings:
    """The settings with the device of a process's own number, where there are several.

    >>> on_own_device(FinetuneSettings(device="cuda"), Launch(3, 4, local_rank=1)).device
    'cuda:1'
    """
    if settings.device != "cuda":
        return settings
    return replace(settings, device=f"cuda:{launch.local_rank}")
