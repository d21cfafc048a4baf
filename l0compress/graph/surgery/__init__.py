"""How a node is rewritten once its operands are smaller: literal sizes, splits, paddings and index selections."""

from __future__ import annotations

from l0compress.graph.surgery.keeps import Kept, kept_of
from l0compress.graph.surgery.rewrites import Cut, rewrite_
from l0compress.graph.surgery.vanished import remove_vanished_

__all__ = ["Cut", "Kept", "kept_of", "remove_vanished_", "rewrite_"]
