"""Calls: the arguments that a model is run with, at whatever batch sizes a check or a timing needs.

requires: a captured graph, whose placeholders say which dimensions are free.
ensures:  calls that the model accepts: rows drawn from its own example inputs, related inputs kept in step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim

from l0compress.devices import device_of, moved
from l0compress.errors import InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.capture.batch import BatchDims, batch_of, bounds_of, leading, symbols_of

# One sample, and more than the seven rows that some kernels of ONNX Runtime take at a time.
BATCH_SIZES = (1, 11)
LARGEST_BATCH_SIZE = 1_000_000


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call, ``model(*args, **kwargs)``.

    ``batch_dims`` says which dimension of each input the batch is, leaf by leaf of ``(args, kwargs)``; where it is
    empty, the batch leads.

    Examples:
        >>> Call((torch.zeros(3, 4),)).batch_size
        3
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    batch_dims: BatchDims = ()

    @property
    def batch_size(self) -> int:
        """Samples in the call."""
        return batch_of(self.args, self.kwargs, self.batch_dims)

    def copy(self) -> Call:
        """The same call on tensors of its own, so that a model that writes into its inputs spoils nothing."""
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (self.args, self.kwargs))
        return Call(args, kwargs, self.batch_dims)

    def to(self, device: torch.device | str) -> Call:
        """The same call on a device; what is float64 becomes float32 where the device has none."""
        return Call(*pytree.tree_map_only(Tensor, lambda leaf: moved(leaf, device), (self.args, self.kwargs)))

    def copy_for(self, model: Any) -> Call:
        """As :meth:`copy`, on the device of a module; for a module without tensors, and any function, where it is."""
        device = device_of(model) if isinstance(model, nn.Module) else None
        return self.copy() if device is None else self.to(device).copy()


def named_leaves(value: Any, prefix: str = "output") -> dict[str, Any]:
    """What a model returns as flat names and values: dict keys, positions, joined by underscores. None is left out.

    Examples:
        >>> list(named_leaves({"logits": 1.0, "states": (2.0, None, 3.0)}))
        ['logits', 'states_0', 'states_2']
        >>> list(named_leaves((1.0, 2.0))), list(named_leaves(1.0))
        (['output_0', 'output_1'], ['output_0'])
    """
    if isinstance(value, Mapping):
        return _flat({str(key): item for key, item in value.items()})
    if isinstance(value, tuple | list):
        return _flat({f"{prefix}_{position}": item for position, item in enumerate(value)})
    return named_leaves((value,), prefix)


def _flat(items: Mapping[str, Any]) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, item in items.items():
        nested = _children(name, item)
        for key, leaf in (nested if nested is not None else {name: item}).items():
            if leaf is not None:
                leaves[key] = leaf
    return leaves


def _children(name: str, item: Any) -> dict[str, Any] | None:
    if isinstance(item, Mapping):
        return _flat({f"{name}_{key}": child for key, child in item.items()})
    if isinstance(item, tuple | list):
        return _flat({f"{name}_{position}": child for position, child in enumerate(item)})
    if isinstance(item, Tensor) or pytree.tree_is_leaf(item):
        return None
    return _flat({f"{name}_{position}": child for position, child in enumerate(pytree.tree_leaves(item))})


def example_calls(graph: CapturedGraph, batch_sizes: Sequence[int] = BATCH_SIZES, *, seed: int = 0) -> tuple[Call, ...]:
    """The example call of a graph, then one call for each of ``batch_sizes``.

    Rows are drawn with replacement from the example's rows, the same ones in every input, and floating-point values
    are varied around the example's; integers stay as they are, so that token ids stay in the vocabulary. A free
    dimension other than the batch (a sequence) is cut to half its length or a little over. Where the batch is not free,
    every call has the example's batch size.

    Examples:
        >>> import l0compress as l0
        >>> graph = l0.capture(torch.nn.Linear(4, 2), (torch.randn(2, 4),))
        >>> [call.batch_size for call in example_calls(graph, (1, 7))]
        [2, 1, 7]

    Raises:
        InputError: what is given is not a captured graph.
    """
    if not isinstance(graph, CapturedGraph):
        raise InputError(
            f"a {type(graph).__name__} is not a captured graph.",
            fix="Capture it first: l0compress.capture(model, example_args).",
            assurance="Nothing was changed and nothing was written.",
        )
    generator = torch.Generator().manual_seed(seed)
    example = example_call(graph)
    drawn = tuple(_drawn(graph, example, size, generator) for size in batch_sizes)
    return (example, *drawn)


def checked_batch_sizes(batch_sizes: Sequence[int] | int) -> tuple[int, ...]:
    """Batch sizes in a tuple; one may be given by itself.

    Raises:
        InputError: there is none, or one is no whole number from 1 to a million.

    Examples:
        >>> checked_batch_sizes(8), checked_batch_sizes([1, 8])
        ((8,), (1, 8))
    """
    given: Any = batch_sizes
    sizes = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    fits = [isinstance(n, Integral) and not isinstance(n, bool) and 1 <= int(n) <= LARGEST_BATCH_SIZE for n in sizes]
    if not fits or not all(fits):
        raise InputError(
            f"batch sizes {given!r}: expected integers from 1 to {LARGEST_BATCH_SIZE:,}.",
            fix="Give for example 8, or (1, 8, 64).",
            assurance="Nothing was run or written.",
        )
    return tuple(int(size) for size in sizes)


def example_call(graph: CapturedGraph) -> Call:
    """The inputs that a model was captured with."""
    return Call(graph.example_args, graph.example_kwargs, graph.batch_dims)


def has_free_batch(graph: CapturedGraph) -> bool:
    """Whether a model takes batches of any size."""
    return any(place in dims for dims, place in zip(free_dims(graph), graph.batch_dims, strict=True))


def sized_example(graph: CapturedGraph, batch_size: int) -> tuple[Call, ...]:
    """A call with the lengths of the example and another batch size; none where the batch is fixed.

    Examples:
        >>> import l0compress as l0
        >>> graph = l0.capture(torch.nn.Linear(4, 2), (torch.randn(2, 4),))
        >>> [call.batch_size for call in sized_example(graph, 64)]
        [64]
    """
    return (resized(example_call(graph), batch_size),) if has_free_batch(graph) else ()


def resized(call: Call, batch_size: int, *, seed: int = 0) -> Call:
    """A call whose batch was captured at some other size, brought to ``batch_size`` by drawing rows again.

    Where the call does not say which dimensions the batch is, every tensor whose leading size is the call's batch size
    is taken to run over it.

    Examples:
        >>> resized(Call((torch.zeros(2, 4), torch.zeros(3))), 5).args[0].shape
        torch.Size([5, 4])
        >>> resized(Call((torch.zeros(7, 2, 4),), batch_dims=(1,)), 5).args[0].shape
        torch.Size([7, 5, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    old = call.batch_size
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    dims = call.batch_dims or leading(leaves, old)
    rows = torch.randint(old, (batch_size,), generator=generator)
    drawn = [
        leaf if dim is None else _varied(leaf.index_select(dim, rows.to(leaf.device)), generator)
        for leaf, dim in zip(leaves, dims, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(drawn, spec)
    return Call(args, kwargs, call.batch_dims)


def _drawn(graph: CapturedGraph, example: Call, batch_size: int, generator: torch.Generator) -> Call:
    leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
    free = free_dims(graph)
    rows: dict[int, Tensor] = {}
    drawn = []
    batch = {dims[place] for dims, place in zip(free, graph.batch_dims, strict=True) if place in dims}
    lengths = _lengths(graph, leaves, free)
    for leaf, dims in zip(leaves, free, strict=True):
        for dim, symbol in dims.items():
            size = leaf.shape[dim]
            if symbol not in batch:
                chosen = torch.arange(lengths[size]) % size
            elif size not in rows:
                chosen = rows[size] = torch.randint(size, (batch_size,), generator=generator)
            else:
                chosen = rows[size]
            leaf = leaf.index_select(dim, chosen.to(leaf.device))
        drawn.append(_varied(leaf, generator) if isinstance(leaf, Tensor) else leaf)
    args, kwargs = pytree.tree_unflatten(drawn, spec)
    return Call(args, kwargs, graph.batch_dims)


def _lengths(graph: CapturedGraph, leaves: Sequence[Any], free: Sequence[Mapping[int, str]]) -> dict[int, int]:
    """Another length for each one in the example: shorter, or longer where the model takes none that is shorter."""
    placeholders = (node for node in graph.nodes() if node.op == "placeholder")
    bounds: dict[int, tuple[float, float]] = {}
    for node, leaf, dims in zip(placeholders, leaves, free, strict=True):
        for dim in dims:
            least, most = bounds.get(leaf.shape[dim], (0, math.inf))
            found = bounds_of(node.meta["val"].shape[dim])
            bounds[leaf.shape[dim]] = max(least, found[0]), min(most, found[1])
    return {
        size: next((other for other in (_shorter(size), size + 1) if least <= other <= most), size)
        for size, (least, most) in bounds.items()
    }


def _shorter(size: int) -> int:
    """Half of an image's side, which strides divide as they do the whole; a little over half of what they do not.

    >>> _shorter(32), _shorter(12), _shorter(7)
    (16, 7, 4)
    """
    return size // 2 if size % 8 == 0 else size // 2 + 1


def asked_dims(graph: CapturedGraph) -> list[dict[int, Any] | None]:
    """For each input leaf, what to ask ``torch.export`` for so that it leaves free what is free in the graph, or None.

    Sizes that are tied by arithmetic, such as multiples of four, are found again by their ties.
    """
    return [
        {dim: Dim.DYNAMIC if dim in free else Dim.AUTO for dim in sizes} or None
        for sizes, free in zip(_symbols(graph), free_dims(graph), strict=True)
    ]


def free_dims(graph: CapturedGraph) -> list[dict[int, str]]:
    """For each input leaf, its free dimensions and the symbol of their size; without those that arithmetic ties."""
    free = _symbols(graph)
    composite = [symbol for dims in free for symbol in dims.values() if not symbol.isidentifier()]
    return [
        {dim: symbol for dim, symbol in dims.items() if not any(symbol in expression for expression in composite)}
        for dims in free
    ]


def _symbols(graph: CapturedGraph) -> list[dict[int, str]]:
    return symbols_of(node for node in graph.nodes() if node.op == "placeholder")


def _varied(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Other values of the same kind: noise where the example is constant, the example times (0.5, 1.5) elsewhere."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    if bool((tensor == tensor.flatten()[0]).all()):
        return torch.randn(tensor.shape, generator=generator).to(tensor)
    return tensor * (0.5 + torch.rand(tensor.shape, generator=generator)).to(tensor)
