"""Shrink: remove what a plan drops, for real. Weights are cut, literal sizes rewritten, shapes checked.

requires: a graph and a plan made of it.
ensures:  a smaller :class:`CapturedGraph` that computes what the masked dense model computes; every node has the
          shape that the plan predicts, or :class:`SurgeryError` is raised and nothing has changed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from l0compress.errors import NOTHING_CHANGED, SurgeryError
from l0compress.graph.capture import CapturedGraph, check_captured, propagate_shapes
from l0compress.graph.cut.kept import kept_of
from l0compress.graph.cut.plan import KeepPlan, cut
from l0compress.graph.cut.vanished import remove_vanished_
from l0compress.graph.labels.islands import Crossing, crossing, is_flat
from l0compress.graph.labels.walk import Entry
from l0compress.graph.nodes.network import GraphNetwork, attribute, copied_graph, delete_unused_
from l0compress.graph.nodes.shapes import shape_of
from l0compress.graph.operators.cut import Cut, Kept, rewrite_


def shrink(graph: CapturedGraph, plan: KeepPlan) -> CapturedGraph:
    """The model that is left when ``plan`` is carried out.

    Args:
        graph: the graph that the plan was made of, or the same graph with other weights.

    Raises:
        InputError: ``graph`` is no captured graph.
        PlanError: the plan belongs to another graph, or came out of training and ``graph`` holds other weights.
        SurgeryError: a node cannot be rewritten exactly.

    Examples:
        >>> from l0compress.graph.capture import capture
        >>> from l0compress.graph.groups import find_groups
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = capture(net, (torch.zeros(2, 4),))
        >>> plan = KeepPlan.from_kept(find_groups(graph), {"0 channels": [1, 5]})
        >>> {name: tuple(tensor.shape) for name, tensor in shrink(graph, plan).state().items()}
        {'0.weight': (2, 4), '0.bias': (2,), '2.weight': (2, 2), '2.bias': (2,)}
    """
    check_captured(graph, "shrink")
    plan.check_fits(graph)
    kept = {
        name: tuple(kept_of(value, plan) for value in (entry if isinstance(entry, tuple) else (entry,)) if value)
        for name, entry in plan.groups.labelled.values.items()
    }
    network = GraphNetwork(_cut_attributes(graph, plan), copied_graph(graph.graph_module.graph))
    copies = {node.name: node for node in network.graph.nodes}
    values = plan.groups.labelled.values
    torn = _torn(graph, kept, values)
    fate = plan.groups.fate_of(plan.alive)
    for node in graph.nodes():
        # What a rewrite puts beside a node that is about to go would stay behind.
        if node.op == "call_function" and node.name in kept and node.name not in torn and fate.goes_on(node.name):
            behind = any(source.name in torn for source in node.all_input_nodes[:1])
            _rewrite_node_(node, copies, kept, network, graph, crossing(node, values) if behind else None)
    remove_vanished_(network, graph, fate, kept)
    network.graph.eliminate_dead_code()
    delete_unused_(network)
    network.graph.lint()
    network.recompile()
    small = replace(graph, graph_module=GraphNetwork(network, network.graph))
    whole = {name: parts for name, parts in kept.items() if name not in fate.constants}
    return _checked(propagate_shapes(small), whole)


def _cut_attributes(graph: CapturedGraph, plan: KeepPlan) -> dict[str, Any]:
    """New parameters and buffers for the small model; tied ones stay tied."""
    keeps = plan.parameter_keeps()
    masks = {id(attribute(graph.graph_module, name)): mask for name, mask in plan.masks.items()}
    made: dict[int, Any] = {}
    attributes: dict[str, Any] = {}
    for node in graph.nodes():
        if node.op != "get_attr":
            continue
        name = str(node.target)
        old = attribute(graph.graph_module, name)
        if id(old) not in made:
            made[id(old)] = _cut_one(old, masks.get(id(old)), keeps.get(name, ()))
        attributes[name] = made[id(old)]
    return attributes


def _cut_one(old: Any, mask: Tensor | None, keeps: tuple[Tensor | None, ...]) -> Any:
    if not isinstance(old, Tensor):
        return old
    whole = old.detach() if mask is None else old.detach().masked_fill(~mask, 0.0)
    new = cut(whole, keeps).clone()
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _torn(graph: CapturedGraph, kept: dict[str, tuple[Kept, ...]], values: dict[str, Entry]) -> set[str]:
    """Nodes of islands that are no rectangle any more, and what follows them inside; nobody will need them."""
    torn: set[str] = set()
    for node in graph.nodes():
        if node.op != "call_function" or not kept.get(node.name):
            continue
        behind = any(source.name in torn for source in node.all_input_nodes[:1])
        if kept[node.name][0].ragged or (behind and not is_flat(values[node.name])):
            torn.add(node.name)
    return torn


def _rewrite_node_(
    node: fx.Node,
    copies: dict[str, fx.Node],
    kept: dict[str, tuple[Kept, ...]],
    network: GraphNetwork,
    graph: CapturedGraph,
    way: Crossing | None,
) -> None:
    results = kept[node.name]
    operands = {
        position: kept[source.name][0]
        for position, source in enumerate(node.args)
        if isinstance(source, fx.Node) and kept.get(source.name)
    }
    if all(part.whole for part in (*results, *operands.values())):
        return
    cut_node = Cut(network, copies[node.name], results, operands, node, graph)
    if way is not None:
        _cross_(cut_node, way, copies[way.start.name], kept[way.start.name][0])
    else:
        rewrite_(cut_node)


def _cross_(cut_node: Cut, way: Crossing, start: fx.Node, kept: Kept) -> None:
    """A rearrangement that is a rectangle at both ends but not inside becomes one ``index_select``."""
    wanted = way.order[cut_node.result.along(way.dim)]
    index = cut_node.constant(torch.searchsorted(kept.along(way.dim), wanted), "index")
    cut_node.become(torch.ops.aten.index_select.default, start, way.dim, index)


def _checked(small: CapturedGraph, kept: dict[str, tuple[Kept, ...]]) -> CapturedGraph:
    """Every node must have the shape that the plan predicts."""
    for node in small.nodes():
        found = node.meta.get("val")
        expected = kept.get(node.name)
        if not isinstance(found, Tensor) or not expected or expected[0].ragged or node.op == "placeholder":
            continue
        if shape_of(found) != expected[0].shape:
            raise SurgeryError(
                f"{node.name} has shape {shape_of(found)}, but the plan leaves {expected[0].shape}.",
                fix="Please report this with the model; until then freeze the layer.",
                assurance=NOTHING_CHANGED,
            )
    return small
