"""The graph layer, with no notion of gates or training. A model walks down through its folders, never up:

``capture`` (module to graph), ``labels`` (graph to labels, by what ``operators`` says of each operator), ``groups``
(labels to what can go), ``cut`` (a plan to a smaller graph). All of them stand on ``nodes``.
"""

from __future__ import annotations

from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.cut.matching import match_moves
from l0compress.graph.cut.plan import KeepPlan, unshrink_state
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Group, Groups, Move, find_groups
from l0compress.graph.groups.cost import UNITS, Cost, cost
from l0compress.graph.groups.reads import Read
from l0compress.graph.groups.weights import find_weights, nonzero_cost
from l0compress.graph.labels.values import Value, along
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.graph.operators import Cut, EmptySum, OfConstant, Operator, Step, Weights
from l0compress.graph.operators.custom import register_operator, register_rule

__all__ = [
    "UNITS",
    "CapturedGraph",
    "Cost",
    "Cut",
    "EmptySum",
    "GraphNetwork",
    "Group",
    "Groups",
    "KeepPlan",
    "Move",
    "OfConstant",
    "Operator",
    "Read",
    "Step",
    "Value",
    "Weights",
    "along",
    "capture",
    "cost",
    "find_groups",
    "find_weights",
    "masked",
    "match_moves",
    "nonzero_cost",
    "register_operator",
    "register_rule",
    "shrink",
    "unshrink_state",
]
