"""Padding: which positions of a batch are there only to fill it up, read off the graph and the data, by no name.

A mask is an integer or boolean input ``(samples, positions)`` of zeros and ones that the graph does not look anything
up by. Either of the two may stand for padding. It is the one at whose positions another input always holds the same
filler. Failing that, a sample is padded at one end alone: what stands at the other in every sample counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from l0compress.data import Batch
from l0compress.graph.nodes.network import GraphNetwork, op_name
from l0compress.training.repair.lockstep import inputs_of

# Where operators have what they look up by.
_INDICES = {"embedding": 1, "gather": 2, "index_select": 2, "take_along_dim": 1, "one_hot": 0, "take": 1}
_SAME_VALUES = (
    *("to", "_to_copy", "alias", "detach", "clone", "contiguous", "view", "reshape", "_unsafe_view", "unsqueeze"),
    *("squeeze", "expand", "slice", "transpose", "permute", "flatten", "lift_fresh_copy"),
)

_BOTH = (False, True)


def counting(network: GraphNetwork, batches: Sequence[Batch]) -> list[Tensor | None]:
    """For each batch, bool ``(samples, positions)``, True = no padding; None where all positions count.

    >>> from l0compress.graph import capture
    >>> class Mean(torch.nn.Module):
    ...     def forward(self, x, seen):
    ...         return (x * seen.unsqueeze(2)).sum(1)
    >>> seen = torch.tensor([[1, 1, 0], [1, 0, 0]])
    >>> batch = Batch((torch.randn(2, 3, 4) * seen.unsqueeze(2), seen), {})
    >>> counting(capture(Mean(), batch.args).module(), [batch])
    [tensor([[ True,  True, False],
            [ True, False, False]])]
    """
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    leaves = zip(*(inputs_of(network, batch) for batch in batches), strict=True)
    columns = dict(zip(inputs, leaves, strict=True))
    found: list[Tensor | None] = [None] * len(batches)
    for node, masks in columns.items():
        if not node.users or _looks_up(node) or not all(_is_mask(mask) for mask in masks):
            continue
        counts = _value_that_counts(masks, [column for other, column in columns.items() if other is not node])
        for number, mask in enumerate(masks if counts is not None else ()):
            known, seen = found[number], mask.bool() == counts
            found[number] = seen if known is None or known.shape != seen.shape else known & seen
    return found


def _looks_up(node: fx.Node) -> bool:
    """Whether something is looked up by the values of an input."""
    pending, seen = [node], {node}
    while pending:
        source = pending.pop()
        for user in source.users:
            name = op_name(user)
            if name in _INDICES and len(user.args) > _INDICES[name] and user.args[_INDICES[name]] is source:
                return True
            if name == "index" and source in user.all_input_nodes[1:]:
                return True
            if name in _SAME_VALUES and user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def _is_mask(value: object) -> bool:
    if not isinstance(value, Tensor) or value.dim() != 2 or value.is_floating_point() or value.is_complex():
        return False
    return bool(((value == 0) | (value == 1)).all())


def _value_that_counts(masks: Sequence[Tensor], others: Sequence[Sequence[object]]) -> bool | None:
    """Which value of a mask says that a position counts; None where the data do not tell."""
    for column in others:
        tensors = [x for x, m in zip(column, masks, strict=True) if isinstance(x, Tensor) and x.shape[:2] == m.shape]
        if len(tensors) == len(masks):
            pairs = list(zip(tensors, masks, strict=True))
            filled = [_is_filler([x[m.bool() == value] for x, m in pairs]) for value in _BOTH]
            if filled[0] != filled[1]:
                return filled[0]
    ends = [torch.cat([mask[:, end].bool() for mask in masks]) for end in (0, -1)]
    whole = [bool(end.all()) or not bool(end.any()) for end in ends]
    if whole[0] == whole[1]:
        return None
    return bool(ends[whole.index(True)][0])


def _is_filler(parts: Sequence[Tensor]) -> bool:
    """Whether the same stands at all of the positions."""
    values = torch.cat(list(parts))
    return len(values) > 0 and bool((values == values[:1]).all())
