"""The graph layer: capture, labels, groups, plans, cost and surgery, with no notion of gates or training."""

from __future__ import annotations

from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cost import UNITS, Cost, cost
from l0compress.graph.groups import Group, Groups, Move, find_groups
from l0compress.graph.masked import masked
from l0compress.graph.matching import match_moves
from l0compress.graph.network import GraphNetwork
from l0compress.graph.plan import KeepPlan, unshrink_state
from l0compress.graph.reads import Read
from l0compress.graph.shrink import shrink

__all__ = [
    "UNITS",
    "CapturedGraph",
    "Cost",
    "GraphNetwork",
    "Group",
    "Groups",
    "KeepPlan",
    "Move",
    "Read",
    "capture",
    "cost",
    "find_groups",
    "masked",
    "match_moves",
    "shrink",
    "unshrink_state",
]
