"""Several processes, through Accelerate: it reads what the launcher set, and chooses gloo or NCCL.

Imported only where a launcher started several processes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor

from l0compress.errors import ProcessesError
from l0compress.graph.nodes.batch_norm import statistics_over
from l0compress.training.launch import Launch
from l0compress.training.processes import Processes, on_own_device
from l0compress.training.settings import FinetuneSettings

Value = TypeVar("Value")
# Elements that are averaged in one message.
_BUCKET = 2**24
_SPOKEN = "l0compress.spoken"
# How long others leave the word to the first process, which tells the same where all of them fail alike.
_POLITE_SECONDS = 1.0


class AcceleratedProcesses(Processes):
    """The processes of a launcher. Every method has to be called by all of them, in the same order."""

    def __init__(self, launch: Launch, kind: str) -> None:
        super().__init__(launch)
        with warnings.catch_warnings():
            # It says how many threads it chose, which the run writes down.
            warnings.filterwarnings("ignore", "OMP_NUM_THREADS/MKL_NUM_THREADS unset")
            with _together():
                self._state = PartialState(cpu=kind == "cpu")

    def placed(self, settings: FinetuneSettings) -> FinetuneSettings:
        return on_own_device(settings, self.launch)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        with _together():
            return _plain(reduce(torch.tensor(numbers, dtype=torch.float64, device=self._state.device), "sum")).tolist()

    def highest(self, number: int) -> int:
        found = torch.tensor(number, device=self._state.device)
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

    def from_first(self, make: Callable[[], Value]) -> Value:
        held: list[Any] = [make() if self.is_first else None]
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

    def statistics(self) -> AbstractContextManager[None]:
        return statistics_over(_total)

    def may_speak(self) -> bool:
        # The launcher's store outlives the processes, or is the first process's own.
        try:
            store = dist.distributed_c10d._get_default_store()
            if not self.is_first:
                time.sleep(_POLITE_SECONDS)
            return store.add(_SPOKEN, 1) == 1
        except (RuntimeError, ValueError):
            return self.rank <= 1

    def leave_(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


class _Total(torch.autograd.Function):
    """A sum over all processes. Each loss depends on all summands, so that the gradients are added up as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        with _together():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
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
        reason = str(error).strip().splitlines()
        raise ProcessesError(
            f"Another process of this run has ended, or cannot be reached ({reason[0] if reason else 'no reason'}).",
            fix="",
        ) from error


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
