"""One network over many batches, node by node: a node has run for all of them before the next one runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx._pytree import tree_flatten_spec
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.node import map_arg

from l0compress.data import Batch
from l0compress.graph.nodes.mutation import writes
from l0compress.graph.nodes.network import GraphNetwork, attribute


class Lockstep:
    """Runs a network over all batches at once and keeps only the values that are still needed.

    Weights are looked up whenever a node reads them, so that they may change on the way.

    Args:
        taken: nodes whose values are kept until they have been taken, and how often each will be.
    """

    def __init__(
        self, network: GraphNetwork, batches: Sequence[Batch], taken: Mapping[fx.Node, int] | None = None
    ) -> None:
        self.network = network
        self._nodes = list(network.graph.nodes)
        self._position = {node: position for position, node in enumerate(self._nodes)}
        self._next = 0
        self._values: list[dict[fx.Node, Any]] = [{} for _ in batches]
        self._inputs = [inputs_of(network, batch) for batch in batches]
        self._last_use = self._last_uses()
        self._taken = dict(taken or {})
        self._kept: dict[fx.Node, list[Any]] = {}
        self._written = any(writes(node) for node in self._nodes)

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        seen: set[fx.Node] = set()
        last: dict[fx.Node, list[fx.Node]] = {}
        for user in reversed(self._nodes):
            for source in user.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    last.setdefault(user, []).append(source)
            if user not in seen:
                last.setdefault(user, []).append(user)
        return last

    def through_(self, node: fx.Node) -> None:
        """Run everything up to a node, itself included; nothing where it has run already."""
        while self._next <= self._position[node]:
            self._run_(self._nodes[self._next])
            self._next += 1

    def before_(self, node: fx.Node) -> None:
        """Run everything before a node."""
        while self._next < self._position[node]:
            self._run_(self._nodes[self._next])
            self._next += 1

    def values(self, node: Any) -> list[Any]:
        """What a node that is still needed returned, or what else stands in its place, for every batch."""
        return [self._resolved(node, values) for values in self._values]

    def value(self, node: fx.Node, number: int) -> Any:
        """What a node that is still needed returned for one batch."""
        return self._resolved(node, self._values[number])

    def follow(self, path: Sequence[fx.Node], start: fx.Node, value: Any, number: int) -> Any:
        """What the last of some nodes would return for one batch, had ``start`` returned ``value``."""
        values = {**self._values[number], start: value}
        for node in path:
            values[node] = self._computed(node, values)
        return values[path[-1]]

    def take_(self, node: fx.Node) -> list[Any]:
        """What a node that was asked to be kept returned, for every batch; it has run by now."""
        self._taken[node] -= 1
        return self._kept[node] if self._taken[node] else self._kept.pop(node)

    def size(self) -> int:
        """Bytes of the activations that are held now."""
        return storages([value for values in self._values for value in values.values()])

    def _run_(self, node: fx.Node) -> None:
        if node.op in ("get_attr", "output"):
            return
        kept: list[Any] = []
        for number, values in enumerate(self._values):
            if node.op == "placeholder":
                values[node] = self._input(number)
            else:
                values[node] = self._computed(node, values)
            if node in self._taken:
                kept.append(self._copy(values[node]))
            for dead in self._last_use.get(node, ()):
                values.pop(dead, None)
        if node in self._taken:
            self._kept[node] = kept

    def _computed(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda source: self._resolved(source, values))
        target: Any = node.target
        return target(*args, **kwargs)

    def _input(self, number: int) -> Any:
        return self._copy(self._inputs[number].pop(0))

    def _copy(self, value: Any) -> Any:
        """What later nodes write in place must not be seen elsewhere."""
        return value.clone() if self._written and isinstance(value, Tensor) else value

    def _resolved(self, argument: Any, values: dict[fx.Node, Any]) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        if argument.op == "get_attr":
            found = attribute(self.network, str(argument.target))
            return found.detach() if isinstance(found, Tensor) else found
        return values[argument]


def inputs_of(network: fx.GraphModule, batch: Batch) -> list[Any]:
    """What stands for each placeholder of a network when it is called with a batch."""
    args, kwargs = batch.call()
    codegen = network.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        return list(tree_flatten_spec((args, kwargs), codegen.pytree_info.in_spec))
    return [*args, *kwargs.values()]


def live_bytes(network: GraphNetwork, batch: Batch) -> int:
    """The most bytes of activations that a network holds at a time for a batch."""
    lane = Lockstep(network, [batch])
    most = 0
    for node in list(network.graph.nodes):
        lane.through_(node)
        most = max(most, lane.size())
    return most


def storages(values: Sequence[Any]) -> int:
    """Bytes of the memory that tensors hold together."""
    found: dict[int, int] = {}
    for value in values:
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                # Its address in memory is not to be had on every device; views of one storage share this handle.
                found[storage._cdata] = storage.nbytes()
    return sum(found.values())
