"""What objects say of themselves when they are printed: a few lines, and no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

MOST_LINES = 8


def headed(title: str, lines: Sequence[str], *, most: int = MOST_LINES) -> str:
    """A title and indented lines, of which the first few are shown.

    >>> print(headed("Groups(3)", ["a", "b", "c"], most=2))
    Groups(3)
      a
      b
      and 1 more
    """
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n  ".join([title, *lines[:most], *more])


def counted(number: int, thing: str) -> str:
    """A number with its thing.

    >>> counted(1, "group"), counted(1200, "move")
    ('1 group', '1,200 moves')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def tensor_text(value: Any) -> str:
    """The type and sizes of a tensor, with names for free sizes.

    >>> tensor_text(torch.zeros(2, 3))
    'float32 (2, 3)'
    """
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(map(str, value.shape))})"


def input_texts(graph: fx.Graph) -> list[str]:
    """One line for each input of a captured graph."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return [f"{node.target}: {tensor_text(node.meta.get('val'))}" for node in inputs]


def size_text(module: torch.nn.Module, graph: fx.Graph) -> str:
    """How many parameters and operators a captured graph has."""
    params = sum(parameter.numel() for parameter in module.parameters())
    return f"{counted(params, 'parameter')}, {counted(sum(n.op == 'call_function' for n in graph.nodes), 'operator')}"
