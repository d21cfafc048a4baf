"""Ternary weights: every row of a weight is -s, 0 and s, with one s a row, and is trained to be.

requires: a graph with weights that products read.
ensures:  a network of the same parameters, in float, that computes with ternary ones; gradients pass straight through.
          :func:`ternarised` puts the ternary values in the place of the parameters for good. No random numbers and no
          state beside the parameters, so that a run goes on from its snapshots as ever.

A weight that a mask has made zero stays it, and counts in the threshold like any other: the more of a row is zero
already, the fewer of the rest become it.

Source: Li, Zhang and Liu, "Ternary Weight Networks", 2016, equations 4 to 6, there with one scale a layer; the gradient
is the straight-through estimator of Bengio, Léonard and Courville, 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from l0compress.errors import InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.int8 import scale_axis
from l0compress.graph.groups.weights import find_weights
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.graph.nodes.protection import Protection, check_globs

# Of the mean magnitude: two thirds are optimal for uniform weights, three quarters for normal ones.
THRESHOLD = 0.7


def ternary(weight: Tensor, axis: int) -> Tensor:
    """The ternary tensor nearest to a weight: for each index of ``axis`` one scale, times -1, 0 or 1.

    What is within :data:`THRESHOLD` times the mean magnitude of its row is 0; the scale is the mean magnitude of the
    rest. Of the same shape and dtype; the gradient is that of ``weight`` itself.

    >>> ternary(torch.tensor([[1.0, -3.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]), 0)
    tensor([[ 2., -2.,  0.,  0.],
            [ 0.,  0.,  0.,  0.]])
    """
    known = weight.detach()
    others = [dim for dim in range(weight.dim()) if dim != axis % weight.dim()]
    magnitudes = known.abs()
    large = magnitudes > THRESHOLD * magnitudes.mean(others, keepdim=True)
    count = large.sum(others, keepdim=True).clamp_min(1)
    scale = (magnitudes * large).sum(others, keepdim=True) / count
    values = torch.where(large, known.sign() * scale, torch.zeros_like(known))
    # The difference is exactly zero, so that the values are exactly ternary.
    return values + (weight - known)


@dataclass(frozen=True)
class TernaryWeight:
    """A weight that becomes ternary.

    Attributes:
        names: its names, several where parameters are tied.
        axis: its dimension with one scale per index, that of its layer's outputs where it is known.
    """

    names: tuple[str, ...]
    axis: int


def ternary_weights(graph: CapturedGraph, keep_float: str | Sequence[str] | None = None) -> tuple[TernaryWeight, ...]:
    """The weights that become ternary: those that products read, but for tables of look-ups and what globs name.

    >>> from l0compress.graph.capture import capture
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    >>> graph = capture(net, (torch.zeros(2, 4),))
    >>> ternary_weights(graph, "1")
    (TernaryWeight(names=('0.weight',), axis=0),)
    """
    exceptions = Protection.of(keep_float)
    sources = {str(node.target): node for node in graph.nodes() if node.op == "get_attr"}
    found = []
    for weight in find_weights(graph):
        if weight.uses and not weight.looked_up and not any(map(exceptions.keeps, weight.names)):
            axes = (scale_axis(sources[name]) for name in weight.names)
            found.append(TernaryWeight(weight.names, next((axis for axis in axes if axis is not None), 0)))
    return tuple(found)


def check_ternary(graph: CapturedGraph, keep_float: str | Sequence[str] | None) -> None:
    """Raises:
    InputError: a glob matches no layer, or no weight would become ternary.
    """
    exceptions = Protection.of(keep_float)
    check_globs("keep_float", exceptions.keep, list(graph.state()))
    if not ternary_weights(graph, keep_float):
        reason = f"keep_float names all of them ({', '.join(exceptions.keep)})" if exceptions else "it has none"
        raise InputError(
            f"ternary: no weight of the model would become ternary: of those that products read, {reason}.",
            fix="Leave --ternary out, or name fewer layers with --keep-float.",
        )


def ternary_network_(network: GraphNetwork, weights: Sequence[TernaryWeight]) -> GraphNetwork:
    """Let whatever reads one of these weights read what :func:`ternary` makes of it; returns the network.

    >>> from l0compress.graph.capture import capture
    >>> layer = torch.nn.Linear(3, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.5, -3.0, 0.1]]))
    >>> graph = capture(layer, (torch.zeros(2, 3),))
    >>> ternary_network_(graph.module(), ternary_weights(graph))(torch.eye(3)).flatten()
    tensor([ 0., -3.,  0.], grad_fn=<ViewBackward0>)
    """
    axes = {name: weight.axis for weight in weights for name in weight.names}
    for node in list(network.graph.nodes):
        if node.op == "get_attr" and str(node.target) in axes:
            _put_behind_(node, axes[str(node.target)])
    network.recompile()
    return network


def _put_behind_(node: fx.Node, axis: int) -> None:
    with node.graph.inserting_after(node):
        made = node.graph.call_function(ternary, (node, axis))
    made.meta["val"] = node.meta.get("val")
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def ternarised(graph: CapturedGraph, weights: Sequence[TernaryWeight]) -> CapturedGraph:
    """The graph with ternary values in the place of these weights.

    >>> from l0compress.graph.capture import capture
    >>> layer = torch.nn.Linear(3, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.5, -3.0, 0.1]]))
    >>> graph = capture(layer, (torch.zeros(2, 3),))
    >>> ternarised(graph, ternary_weights(graph)).state()["weight"]
    tensor([[ 0., -3.,  0.]])
    """
    state = dict(graph.state())
    for weight in weights:
        values = ternary(state[weight.names[0]].detach(), weight.axis)
        state.update(dict.fromkeys(weight.names, values))
    return graph.with_state(state)
