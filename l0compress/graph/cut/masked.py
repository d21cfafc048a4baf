"""The dense model with every dropped read and weight zeroed: the reference that surgery is checked against.

It shares no code with :mod:`l0compress.graph.cut.shrink`: no shape changes, no tensor is cut. Weights that read dropped
channels are multiplied by zero where they do; activations are, where the reader is no weight.
"""

from __future__ import annotations

import torch
from torch import fx

from l0compress.errors import PlanError
from l0compress.graph.capture import CapturedGraph, check_captured
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups.reads import Read
from l0compress.graph.nodes.network import GraphNetwork, argument_at, attribute, network_of, put_argument_


def masked(graph: CapturedGraph, plan: KeepPlan) -> GraphNetwork:
    """The dense model of ``graph``, in eval mode, blind to what ``plan`` drops.

    Args:
        graph: the graph that the plan was made of, or the same graph with other weights.

    Raises:
        InputError: ``graph`` is no captured graph.
        PlanError: the plan belongs to another graph, or came out of training and ``graph`` holds other weights.

    Examples:
        >>> from l0compress.graph.capture import capture
        >>> from l0compress.graph.groups import find_groups
        >>> from l0compress.graph.cut.shrink import shrink
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> graph = capture(net, (torch.randn(2, 4),))
        >>> plan = KeepPlan.random(find_groups(graph), density=0.5, seed=1)
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(masked(graph, plan)(x), shrink(graph, plan).module()(x), atol=1e-6)
        True
    """
    check_captured(graph, "masked")
    plan.check_fits(graph)
    network = network_of(graph.graph_module)
    with torch.no_grad():
        for name, mask in plan.masks.items():
            attribute(network, name).masked_fill_(~mask, 0.0)
    nodes = {node.name: node for node in network.graph.nodes}
    for number, read in enumerate(plan.groups.reads):
        silent = read.silenced(plan.alive)
        if bool(silent.any()):
            _silence_(network, nodes[read.node], read, silent, f"mask_{number}")
    network.recompile()
    return network


def _silence_(network: GraphNetwork, node: fx.Node, read: Read, silent: torch.Tensor, name: str) -> None:
    source = argument_at(node, read.arg)
    if not isinstance(source, fx.Node):
        raise PlanError(f"argument {read.arg} of {read.node} is not a tensor; the plan was made for another graph.")
    network.register_buffer(name, silent, persistent=False)
    with network.graph.inserting_before(node):
        mask = network.graph.get_attr(name)
        product = network.graph.call_function(torch.ops.aten.masked_fill.Scalar, (source, mask, 0.0))
    put_argument_(node, read.arg, product)
