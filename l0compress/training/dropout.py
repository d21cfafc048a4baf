"""Dropout and DropConnect while training: elements of hidden activations, or of weights, are zero at random.

requires: a network made of a captured graph, gated or not.
ensures:  in training mode, what a contraction reads is dropped, and the rest scaled up so that its mean stays; in
          evaluation mode nothing is. Draws come from the global generator, and there are neither parameters nor
          buffers, so that a run goes on from its snapshots as ever.

Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 2014, section 4;
Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013, section 3, here scaled like dropout, which
has the same mean in training as in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from l0compress.errors import InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.int8 import leads_to_weights
from l0compress.graph.groups.weights import places_of
from l0compress.graph.nodes.network import GraphNetwork, Place, argument_at, op_name, put_argument_
from l0compress.graph.operators.record import operator_of
from l0compress.training.input_dropout import dropout
from l0compress.training.settings import FinetuneSettings

ACTIVATIONS, WEIGHTS = "l0_dropout", "l0_drop_connect"


class Dropped(nn.Module):
    """Dropout in training mode, the identity in evaluation mode; the probability is rounded to 1/256.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> layer, x = Dropped(0.5), torch.ones(4)
    >>> sorted(set(layer(x).tolist())), layer.eval()(x)
    ([0.0, 2.0], tensor([1., 1., 1., 1.]))
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with elements dropped."""
        return dropout(x, self.probability) if self.training else x


@dataclass(frozen=True)
class Contraction:
    """A node that multiplies by weights: where it reads these, and where a hidden activation, if it reads one."""

    node: str
    weights: tuple[Place, ...]
    hidden: int | None


def contractions(graph: CapturedGraph) -> tuple[Contraction, ...]:
    """The nodes of a graph that multiply by parameters; what comes from the input by moves alone is not hidden.

    >>> import torch
    >>> from l0compress.graph.capture import capture
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [(found.weights, found.hidden) for found in contractions(capture(net, (torch.zeros(2, 2, 2),)))]
    [((1,), None), ((1,), 0)]
    """
    return tuple(_found(graph))


def _found(graph: CapturedGraph) -> Iterator[Contraction]:
    for node in graph.nodes():
        known = operator_of(node).weights
        if node.op != "call_function" or (known is not None and known.looked_up):
            continue
        weights = tuple(place for place in places_of(node) if leads_to_weights(argument_at(node, place)))
        if weights:
            other = 1 if op_name(node) == "addmm" or 0 in weights else 0
            yield Contraction(node.name, weights, other if _is_hidden(node.args[other]) else None)


def _is_hidden(node: Any) -> bool:
    if not isinstance(node, fx.Node) or leads_to_weights(node):
        return False
    while operator_of(node).moves and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op != "placeholder"


def check_dropout(graph: CapturedGraph, settings: FinetuneSettings) -> None:
    """Raises:
    InputError: something is to be dropped that the model does not have.
    """
    found = contractions(graph) if settings.dropout or settings.drop_connect else ()
    if settings.dropout and not any(one.hidden is not None for one in found):
        raise InputError(
            "dropout: no layer of the model reads what another one computes, so there is nothing hidden to drop.",
            fix="Leave --dropout out; --input-dropout is for what the model is given.",
        )
    if settings.drop_connect and not found:
        raise InputError(
            "drop_connect: no layer of the model multiplies by weights, so there are none to drop.",
            fix="Leave --drop-connect out.",
        )


def drop_(network: GraphNetwork, graph: CapturedGraph, settings: FinetuneSettings) -> GraphNetwork:
    """Let the contractions of a network read what is left of activations and weights; returns the network.

    Args:
        network: made of ``graph``, under its node names.
        settings: with nothing to drop, the network stays as it is.
    """
    if not settings.dropout and not settings.drop_connect:
        return network
    nodes = {node.name: node for node in network.graph.nodes}
    for name, probability in ((ACTIVATIONS, settings.dropout), (WEIGHTS, settings.drop_connect)):
        if probability:
            network.add_submodule(name, Dropped(probability))
    for one in contractions(graph):
        node = nodes[one.node]
        if settings.dropout and one.hidden is not None:
            _put_before_(node, one.hidden, ACTIVATIONS)
        for place in one.weights if settings.drop_connect else ():
            _put_before_(node, place, WEIGHTS)
    network.recompile()
    return network


def _put_before_(node: fx.Node, place: Place, module: str) -> None:
    source = argument_at(node, place)
    with node.graph.inserting_before(node):
        dropped = node.graph.call_module(module, (source,))
    dropped.meta["val"] = source.meta.get("val")
    put_argument_(node, place, dropped)
