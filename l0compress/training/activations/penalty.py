"""An L1 penalty on activations behind rectifiers: units that are of little use fire ever less, and then never.

requires: a network made of a captured graph, gated or not.
ensures:  in training mode, :func:`charged` adds to a loss the sum over units of the mean of their absolute activation,
          over samples and positions, so that neither the size of a batch nor that of an image changes its weight. There
          are neither parameters nor buffers, and nothing is drawn, so that a run goes on from its snapshots as ever.

Source: Glorot, Bordes and Bengio, "Deep Sparse Rectifier Neural Networks", AISTATS 2011, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0compress.errors import InputError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.training.activations.rectifiers import find_rectifiers
from l0compress.training.settings import FinetuneSettings

_NAME = "l0_activations"


class Activations(nn.Module):
    """The identity, which in training mode notes the norm of what passes through it.

    >>> behind = Activations()
    >>> x = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    >>> behind(x, units=2, signed=False) is x, behind.taken_()  # means of 2 and 1
    (True, tensor(3.))
    """

    def __init__(self) -> None:
        super().__init__()
        self._norms: list[Tensor] = []

    def forward(self, x: Tensor, *, units: int, signed: bool) -> Tensor:
        """Return ``x``, activations of so many units, and note the sum over these of their mean absolute value."""
        if self.training:
            # Where something is written in place behind a rectifier, it must not be what a gradient needs.
            size = x.clone().abs() if signed else x
            self._norms.append(units * size.mean(dtype=torch.promote_types(x.dtype, torch.float32)))
        return x

    def taken_(self) -> Tensor:
        """The sum of what was noted since it was last taken."""
        total = sum(self._norms, torch.zeros(()))
        self._norms = []
        return total


def observe_(network: GraphNetwork, graph: CapturedGraph, settings: FinetuneSettings) -> GraphNetwork:
    """Let a network note the activations behind its rectifiers; returns the network.

    Args:
        network: made of ``graph``, under its node names.
        settings: without a penalty, the network stays as it is.
    """
    if not settings.activation_l1:
        return network
    nodes = {node.name: node for node in network.graph.nodes}
    network.add_submodule(_NAME, Activations())
    for found in find_rectifiers(graph):
        node = nodes[found.node]
        with node.graph.inserting_after(node):
            noted = node.graph.call_module(_NAME, (node,), {"units": found.units, "signed": found.signed})
        noted.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(noted, delete_user_cb=lambda user, noted=noted: user is not noted)
    network.recompile()
    return network


def charged(loss: Tensor, network: nn.Module, strength: float) -> Tensor:
    """The loss of what ``network`` was last run on, with ``strength`` times the norm of its activations."""
    if not strength:
        return loss
    for module in network.modules():
        if isinstance(module, Activations):
            loss = loss + strength * module.taken_().to(loss.device)
    return loss


def check_activations(graph: CapturedGraph, settings: FinetuneSettings) -> None:
    """Raises:
    InputError: activations are to be penalised, but there is no rectifier with units that can be removed.
    """
    if settings.activation_l1 and not find_rectifiers(graph):
        raise InputError(
            "activation_l1: the model has no ReLU, or other function that is zero on a half-line, behind which a unit "
            "could be removed.",
            fix="Leave --activation-l1 out.",
        )
