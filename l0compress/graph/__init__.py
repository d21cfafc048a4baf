"""The graph layer: capture, labels, groups, plans, cost and surgery, with no notion of gates or training."""

from __future__ import annotations

from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cost import UNITS, Cost, cost
from l0compress.graph.extension import register_rule
from l0compress.graph.groups import Group, Groups, Move, find_groups
from l0compress.graph.masked import masked
from l0compress.graph.matching import match_moves
from l0compress.graph.network import GraphNetwork
from l0compress.graph.plan import KeepPlan, unshrink_state
from l0compress.graph.reads import Read
from l0compress.graph.rules import Step
from l0compress.graph.shrink import shrink
from l0compress.graph.surgery import Cut
from l0compress.graph.values import Value, along
from l0compress.graph.weights import find_weights, nonzero_cost

__all__ = [
    "UNITS",
    "CapturedGraph",
    "Cost",
    "Cut",
    "GraphNetwork",
    "Group",
    "Groups",
    "KeepPlan",
    "Move",
    "Read",
    "Step",
    "Value",
    "along",
    "capture",
    "cost",
    "find_groups",
    "find_weights",
    "masked",
    "match_moves",
    "nonzero_cost",
    "register_rule",
    "shrink",
    "unshrink_state",
]
