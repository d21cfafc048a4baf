"""What a plan asks of the code that calls the layers: sizes that are written there, and channels to be selected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from l0compress.graph.capture import CapturedGraph

# What operators call the arguments that say how large something is, or where it begins and ends.
_SIZES = frozenset(
    ("shape", "size", "sizes", "split_size", "split_sizes", "chunks", "start", "end", "length", "groups", "num_groups")
)

Pairs = dict[str, tuple[tuple[int, int], ...]]


def module_of(node: fx.Node) -> str | None:
    """The name of the module whose forward made the call, None where the graph does not say."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    return next((str(entry[0]) for entry in reversed(stack.values())), None)


def sizes_in_calls(dense: CapturedGraph, small: CapturedGraph) -> Pairs:
    """The sizes that each module's own forward passes to operators: before and after the cut, in order, each once.

    >>> from l0compress.graph import KeepPlan, capture, find_groups, shrink
    >>> class Heads(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.enter, self.leave = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)
    ...     def forward(self, x):
    ...         return self.leave(self.enter(x).view(-1, 3, 2).softmax(-1).view(-1, 6))
    >>> graph = capture(Heads(), (torch.randn(2, 4),))
    >>> plan = KeepPlan.from_kept(find_groups(graph), {"enter blocks": [0, 2]})
    >>> sizes_in_calls(graph, shrink(graph, plan))
    {'': ((3, 2), (2, 2), (6, 4))}
    """
    after = {node.name: node for node in small.nodes()}
    found: dict[str, dict[tuple[int, int], None]] = {}
    for node in dense.nodes():
        path, copy = module_of(node), after.get(node.name)
        if path is not None and copy is not None:
            found.setdefault(path, {}).update(dict.fromkeys(_pairs(node, copy)))
    return {path: tuple(pairs) for path, pairs in found.items() if pairs}


def _pairs(node: fx.Node, copy: fx.Node) -> Iterator[tuple[int, int]]:
    # A view may have become a reshape: what counts is that sizes stand in the same place.
    for old, new in zip(_size_arguments(node), _size_arguments(copy), strict=False):
        before, now = (list(value) if isinstance(value, list | tuple) else [value] for value in (old, new))
        yield from ((a, b) for a, b in zip(before, now, strict=False) if type(a) is type(b) is int and a > 0 and b >= 0)


def _size_arguments(node: fx.Node) -> Iterator[Any]:
    """By position what a call says of sizes, None in places of other arguments."""
    if isinstance(node.target, torch._ops.OpOverload):
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            yield value if argument.name in _SIZES else None


def selects(dense: CapturedGraph, small: CapturedGraph) -> bool:
    """Whether the cut has to select channels of a value that others use whole."""
    before = {node.name for node in dense.nodes()}
    select = torch.ops.aten.index_select.default
    return any(node.target == select and node.name not in before for node in small.nodes())
