"""How a node is rewritten once its operands are smaller: one file a kind of argument, one function an operator."""

from __future__ import annotations

from l0compress.graph.surgery import counting, indexing, layers, positions, sizes
from l0compress.graph.surgery.keeps import Kept, kept_of
from l0compress.graph.surgery.registry import Cut, rewrite_
from l0compress.graph.surgery.vanished import remove_vanished_

__all__ = [
    "Cut",
    "Kept",
    "counting",
    "indexing",
    "kept_of",
    "layers",
    "positions",
    "remove_vanished_",
    "rewrite_",
    "sizes",
]
