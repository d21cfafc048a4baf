"""What regularises a network while it is trained, put into its graph."""

from __future__ import annotations

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.training.activations.penalty import observe_
from l0compress.training.dropout import drop_
from l0compress.training.settings import FinetuneSettings


def regularise_(network: GraphNetwork, graph: CapturedGraph, settings: FinetuneSettings) -> GraphNetwork:
    """Let a network drop and note what the settings say; returns the network.

    Args:
        network: made of ``graph``, under its node names.
        settings: with nothing to drop and no penalty on activations, the network stays as it is.
    """
    return observe_(drop_(network, graph, settings), graph, settings)
