"""Every global source of randomness that a training step may draw from, read as tensors and put back."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from l0compress.data import AnySplit, StreamSplit
from l0compress.devices import device_state, forked_randomness, repeatable, set_device_state_
from l0compress.training.processes import Processes

_TORCH, _DEVICE, _PYTHON, _NUMPY = "torch", "device", "python", "numpy"
_MERSENNE = "MT19937"


def torch_states(device: str = "cpu") -> dict[str, Tensor]:
    """The states of torch's global generator and of the device's own."""
    own = device_state(device)
    return {_TORCH: torch.get_rng_state(), **({} if own is None else {_DEVICE: own})}


def set_torch_states_(states: Mapping[str, Tensor], device: str = "cpu") -> None:
    """Put back what :func:`torch_states` returned."""
    torch.set_rng_state(states[_TORCH].contiguous())
    if _DEVICE in states:
        set_device_state_(device, states[_DEVICE])


def random_states(device: str = "cpu") -> dict[str, Tensor]:
    """The states of torch's, Python's and NumPy's global generators, and of the device's own.

    A user's data may draw from any of the first three.
    """
    states = torch_states(device)
    _, words, gauss = random.getstate()
    states[f"{_PYTHON}.words"] = torch.tensor(words)
    states[f"{_PYTHON}.gauss"] = torch.tensor([] if gauss is None else [gauss], dtype=torch.float64)
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    if kind == _MERSENNE:
        words = [*np.asarray(keys).tolist(), int(position), int(has_gauss)]
        states[f"{_NUMPY}.words"] = torch.tensor(words)
        states[f"{_NUMPY}.gauss"] = torch.tensor([float(cached)], dtype=torch.float64)
    return states


def set_random_states_(states: Mapping[str, Tensor], device: str = "cpu") -> None:
    """Put back what :func:`random_states` returned.

    >>> states = random_states()
    >>> drawn = random.random(), np.random.normal(), torch.rand(1).item()
    >>> set_random_states_(states)
    >>> (random.random(), np.random.normal(), torch.rand(1).item()) == drawn
    True
    """
    set_torch_states_(states, device)
    gauss = states[f"{_PYTHON}.gauss"].tolist()
    random.setstate((3, tuple(states[f"{_PYTHON}.words"].tolist()), gauss[0] if gauss else None))
    if f"{_NUMPY}.words" in states:
        *keys, position, has_gauss = states[f"{_NUMPY}.words"].tolist()
        (cached,) = states[f"{_NUMPY}.gauss"].tolist()
        np.random.set_state((_MERSENNE, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def loader_states(split: AnySplit) -> list[Tensor]:
    """The states of the generators that a ``DataLoader`` was given, which outlive an epoch."""
    return [generator.get_state() for generator in _own_generators(split)]


def set_loader_states_(split: AnySplit, states: Sequence[Tensor]) -> None:
    """Put back what :func:`loader_states` returned."""
    for generator, state in zip(_own_generators(split), states, strict=True):
        generator.set_state(state)


def _own_generators(split: AnySplit) -> list[torch.Generator]:
    """A loader's own generator, and its samplers'."""
    if not isinstance(split, StreamSplit) or not isinstance(split.source, DataLoader):
        return []
    loader = split.source
    inner = getattr(loader.batch_sampler, "sampler", None)
    found = [getattr(place, "generator", None) for place in (loader, loader.sampler, inner)]
    unique = {id(generator): generator for generator in found if isinstance(generator, torch.Generator)}
    return list(unique.values())


_TURN = threading.RLock()


@contextmanager
def in_turn() -> Iterator[None]:
    """One thread at a time: others wait until it is done. A thread that is inside may come in again.

    PyTorch's generator, its tracer and the state of its warnings belong to the whole process, so that two runs at the
    same time would draw from one another. In turns each computes what it would compute alone, bit for bit.
    """
    with _TURN:
        yield


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Draw from a seed, in turn with other threads; the global state, the device's too, is put back afterwards.

    >>> with seeded(3):
    ...     one = torch.rand(1)
    >>> with seeded(3):
    ...     print(bool(torch.rand(1) == one))
    True
    """
    with in_turn(), forked_randomness(device), repeatable(device):
        torch.manual_seed(seed)
        yield


def alike_(processes: Processes, device: str = "cpu") -> None:
    """Give every process the random states of the first, also those that a run's own seed does not set."""
    if not processes.is_alone:
        states = processes.from_first(lambda: {name: state.cpu() for name, state in random_states(device).items()})
        set_random_states_(states, device)


@contextmanager
def undisturbed(split: AnySplit) -> Iterator[None]:
    """Whatever is read meanwhile, the global generators and those of the part's loader stand afterwards as before.

    >>> with undisturbed(StreamSplit([torch.zeros(1)])):
    ...     before = torch.rand(1)
    >>> bool(torch.rand(1) == before)
    True
    """
    states, own = random_states(), loader_states(split)
    try:
        yield
    finally:
        set_random_states_(states)
        set_loader_states_(split, own)
