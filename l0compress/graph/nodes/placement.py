"""On which device the parts of a graph are: literal devices follow the network, and a captured graph is on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from l0compress.devices import CPU


def place_(graph: fx.Graph, device: torch.device) -> bool:
    """Let operators that name a device (``arange``, ``zeros``, ``to``) name this one.

    Capture writes down where the model happened to be; what is made there meets weights and inputs.

    Returns:
        Whether a node was changed.

    Examples:
        >>> graph = fx.Graph()
        >>> node = graph.call_function(torch.ops.aten.arange.default, (3,), {"device": torch.device("cuda", 0)})
        >>> place_(graph, torch.device("cpu")), place_(graph, torch.device("cpu")), node.kwargs["device"]
        (True, False, device(type='cpu'))
    """
    others = [node for node in graph.nodes if named_devices(node) - {device}]

    def swap(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in others:
        node.args, node.kwargs = map_aggregate(node.args, swap), map_aggregate(node.kwargs, swap)
    return bool(others)


def named_devices(node: fx.Node) -> set[torch.device]:
    """The devices that stand among a node's arguments."""
    found: set[torch.device] = set()

    def note(value: Any) -> Any:
        if isinstance(value, torch.device):
            found.add(value)
        return value

    map_aggregate((node.args, node.kwargs), note)
    return found


def bring_here_(network: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Bring a network to the CPU; says whether anything of it, or an example input, was elsewhere.

    What is on the meta device has shapes and no values to bring, so that it stays there.
    """
    tensors = [*network.parameters(), *network.buffers(), *pytree.tree_leaves((args, kwargs))]
    devices = {tensor.device for tensor in tensors if isinstance(tensor, Tensor)}
    devices = devices.union(*(named_devices(node) for node in network.graph.nodes))
    if devices <= {CPU} or any(device.type == "meta" for device in devices):
        return False
    network.to(CPU)
    place_(network.graph, CPU)
    network.recompile()
    return True


def apart(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A hint for a model and example inputs that are on several devices; empty where they are on one."""
    tensors = [*model.parameters(), *model.buffers(), *pytree.tree_leaves((args, dict(kwargs)))]
    devices = sorted({str(tensor.device) for tensor in tensors if isinstance(tensor, Tensor)})
    return f" Model and inputs are on {' and '.join(devices)}: bring them to one device." if len(devices) > 1 else ""
