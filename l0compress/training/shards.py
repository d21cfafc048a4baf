"""Networks that are divided over processes by FSDP2 (``torch.distributed.fsdp.fully_shard``).

Imported only where something is divided. Every process has a part of each weight, of its gradient and of what an
optimizer keeps for it. A unit's weights are gathered before it runs, forward or backward, and freed afterwards. Gates,
buffers and weights that cannot be divided are whole in each process.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from l0compress.gates.attach import GatedNetwork
from l0compress.graph.nodes.network import GraphNetwork, replace_tensor_
from l0compress.training.held import Held, divided_like, whole
from l0compress.training.units import Unit, Units, in_units


class ShardedNetwork(nn.Module):
    """Runs a network whose weights are divided. Its parameters have the names that they have in the given one.

    All processes have to call it, as often and in the same order.
    """

    def __init__(self, network: Unit, given: nn.Module, divided: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.run = network
        # Not submodules: their parameters are those of the module above, or without values.
        self._given, self._divided = (given,), dict(divided)
        self.train(given.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            # Whatever writes in place is in the unit that made what it writes to.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            return self.run(*args, **kwargs)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._given[0].named_parameters(prefix, recurse, remove_duplicate):
            yield name, self._divided.get(name, parameter)


class Shards(Held):
    """Divides the weights of a network, gated or not.

    The network that is given keeps its structure, its gates and its buffers, but its weights have no values until
    :meth:`gather_` is called.
    """

    def __init__(self, given: GatedNetwork | GraphNetwork, *, size: int) -> None:
        gc.collect()  # what FSDP divided before and nobody uses any more refers to itself
        self._given = given
        inner, weights = (given.network, given.weights()) if isinstance(given, GatedNetwork) else (given, None)
        gates = set() if weights is None else set(given.parameters()) - set(weights.values())
        units = in_units(inner)
        whole_ones = gates | units.kept
        paths = {weight: path for path, weight in units.network.named_parameters() if weight not in whole_ones}
        named = {n: paths[w] for n, w in given.named_parameters(remove_duplicate=False) if w in paths}
        device = next((weight.device for weight in paths), torch.device("cpu"))
        _divide_(units, _mesh(device.type, size), whole_ones)
        now = dict(units.network.named_parameters(remove_duplicate=False))
        self._divided = {name: now[path] for name, path in named.items()}
        super().__init__(ShardedNetwork(units.network, given, self._divided))
        self.part_()

    def tensors(self) -> dict[str, Tensor]:
        return {
            name: self._divided[name].detach() if name in self._divided else tensor
            for name, tensor in self._given.state_dict().items()
        }

    def load_(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(divided_like(state[name], tensor))

    def divided(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: divided_like(tensor, self._divided.get(name, tensor)) for name, tensor in state.items()}

    def parameters_of(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        names = {parameter: name for name, parameter in self._given.named_parameters()}
        return {name: self._divided.get(names[parameter], parameter) for name, parameter in parameters.items()}

    def gather_(self) -> None:
        self._put_({weight: whole(weight.detach()) for weight in self._weights()})

    def part_(self) -> None:
        self._put_({w: torch.empty(w.shape, dtype=w.dtype, device="meta") for w in self._weights()})

    def _weights(self) -> tuple[nn.Parameter, ...]:
        """Each once, in an order that is the same in all processes."""
        return tuple(dict.fromkeys(self._divided.values()))

    def _put_(self, values: Mapping[nn.Parameter, Tensor]) -> None:
        made = {weight: nn.Parameter(value, weight.requires_grad) for weight, value in values.items()}
        for name, weight in self._divided.items():
            replace_tensor_(self._given, name, made[weight])


def _divide_(units: Units, mesh: DeviceMesh, whole_ones: set[nn.Parameter]) -> None:
    for unit in (*units.units, units.network):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=whole_ones)


@cache
def _mesh(device_type: str, size: int) -> DeviceMesh:
    return init_device_mesh(device_type, (size,))
