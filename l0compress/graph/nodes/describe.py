"""What objects say of themselves when they are printed: a few lines, and no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

MOST_LINES = 8
_PLAIN = (bool, int, float, str, type(None))


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


def input_text(value: Any) -> str:
    """An input by its type and sizes, of which the free ones are called "any".

    >>> input_text(torch.zeros(2, 3)), input_text([torch.zeros(4), None])
    ('float32 (2, 3)', '[float32 (4), None]')
    """
    if isinstance(value, Tensor):
        sizes = ["any" if isinstance(size, torch.SymInt) else str(size) for size in value.shape]
        return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(sizes)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(input_text, value))}]"
    return repr(value) if isinstance(value, _PLAIN) else type(value).__name__


def input_texts(graph: fx.Graph) -> list[str]:
    """One line for each input of a captured graph."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return [f"{node.target}: {input_text(node.meta.get('val'))}" for node in inputs]


def size_text(module: torch.nn.Module, graph: fx.Graph) -> str:
    """How many parameters and operators a captured graph has."""
    params = sum(parameter.numel() for parameter in module.parameters())
    return f"{counted(params, 'parameter')}, {counted(sum(n.op == 'call_function' for n in graph.nodes), 'operator')}"
