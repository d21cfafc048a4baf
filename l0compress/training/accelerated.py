"""Several processes, through Accelerate: it reads what the launcher set, and chooses gloo or NCCL.

Imported only where a launcher started several processes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor

from l0compress.errors import InputError, ProcessesError
from l0compress.gates.network import GatedNetwork
from l0compress.graph.nodes.batch_norm import statistics_over
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.training.held import Held
from l0compress.training.launch import Launch
from l0compress.training.processes import Processes, on_own_device
from l0compress.training.settings import FinetuneSettings

Value = TypeVar("Value")
# Elements that are averaged in one message.
_BUCKET = 2**24
_SPOKEN, _ASKED = "l0compress.spoken", "l0compress.asked"
# How long others leave the word to the first process, which tells the same where all of them fail alike.
_POLITE_SECONDS = 1.0
_PATIENT_SECONDS = 3.0


class AcceleratedProcesses(Processes):
    """The processes of a launcher. Every method has to be called by all of them, in the same order."""

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        with warnings.catch_warnings(), _together():
            # It says how many threads it chose, which the run writes down.
            warnings.filterwarnings("ignore", "OMP_NUM_THREADS/MKL_NUM_THREADS unset")
            if not dist.is_initialized():
                # Gloo for what is on the CPU, and NCCL for what is on a GPU, whichever the run will need.
                dist.init_process_group()
            PartialState(cpu=not torch.cuda.is_available())
        self._store = dist.distributed_c10d._get_default_store()

    def placed(self, settings: FinetuneSettings) -> FinetuneSettings:
        placed = on_own_device(settings, self.launch)
        if placed.device.startswith("cuda") and self.launch.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"Process {self.launch.local_rank} of this host (counted from 0) has no GPU: there are "
                f"{torch.cuda.device_count()}.",
                fix="Start at most one process for each GPU, or pass --device cpu.",
            )
        return placed

    def sums(self, numbers: Sequence[float]) -> list[float]:
        with _together():
            return _plain(reduce(torch.tensor(numbers, dtype=torch.float64), "sum")).tolist()

    def highest(self, number: int) -> int:
        found = torch.tensor(number)
        with _together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def average_(self, gradients: Iterable[Tensor]) -> None:
        for bucket in _buckets(gradients):
            with _together():
                mean = _plain(reduce(torch.cat([tensor.flatten() for tensor in bucket]), "mean"))
            parts = mean.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def say(self, value: Value) -> Value:
        with _together():
            broadcast_object_list([value])
        return value

    def hear(self) -> Any:
        held: list[Any] = [None]
        with _together():
            return broadcast_object_list(held)[0]

    def check_same(self, checksum: str, what: str) -> None:
        with _together():
            found = gather_object([checksum])
        others = [str(rank) for rank, each in enumerate(found) if each != found[0]]
        if others:
            raise ProcessesError(
                f"{what} differs from that of process 0 in process {', '.join(others)} of {self.size} (counted from "
                "0).",
                fix="Give all processes the same model, data, settings, versions and kind of device.",
            )

    def divided(self, network: GraphNetwork | GatedNetwork) -> Held:
        from l0compress.training.shards import Shards

        with _together():
            return Shards(network, size=self.size)

    @contextmanager
    def noticing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _is_of_transport(error):
                raise
            raise _lost(error) from error

    def statistics(self) -> AbstractContextManager[None]:
        return statistics_over(_total)

    def may_speak(self) -> bool:
        try:
            if not self.is_first:
                self._wait(_SPOKEN, 1, _POLITE_SECONDS)
            speaks = self._store.add(_SPOKEN, 1) == 1
        except RuntimeError:  # the first process is gone, and the store with it
            return self.rank == 1
        if not self.is_first:
            with suppress(RuntimeError):
                self._store.add(_ASKED, 1)
        return speaks

    def part_(self) -> None:
        self.leave_()
        if self.is_first:
            # The store may end with this process. The others, who wait for it, have noticed that they are alone.
            self._wait(_ASKED, self.size - 1, _PATIENT_SECONDS)

    def _wait(self, key: str, number: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._store.add(key, 0) < number and time.monotonic() < end:
            time.sleep(0.02)

    def leave_(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


class _Total(torch.autograd.Function):
    """A sum over all processes. Each loss depends on all summands, so that the gradients are added up as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        del ctx
        total = tensor.clone()
        with _together():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].contiguous().clone()
        with _together():
            dist.all_reduce(total)
        return total


def _total(tensor: Tensor) -> Tensor:
    return _Total.apply(tensor)


@contextmanager
def _together() -> Iterator[None]:
    """What fails in here fails because another process is gone, or cannot be reached."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        raise _lost(error) from error


def _lost(error: Exception) -> ProcessesError:
    reason = str(error).strip().splitlines()
    return ProcessesError(
        f"Another process of this run has ended, or cannot be reached ({reason[0] if reason else 'no reason'})."
    )


def _is_of_transport(error: RuntimeError) -> bool:
    """Whether an error comes from gloo, NCCL or the store, and not from what they were called with."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo/transport", "ProcessGroup"))


def _plain(reduced: Any) -> Tensor:
    return reduced


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, as many at a time as one message takes; the order is the same in all processes."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = by_type.setdefault(tensor.dtype, [])
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > _BUCKET:
            yield by_type.pop(tensor.dtype)
            bucket = by_type.setdefault(tensor.dtype, [])
        bucket.append(tensor)
    yield from by_type.values()
