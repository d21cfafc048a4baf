"""A captured graph as a trainable module: original parameter names, and a train/eval switch inside the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from l0compress.devices import device_of
from l0compress.graph.nodes.batch_norm import batch_norm as batch_norm
from l0compress.graph.nodes.pickling import GraphRecipe, graph_from, recipe_of
from l0compress.graph.nodes.placement import place_

# Which positional argument of an operator says "training". A flag that is already True in an eval-mode capture
# belongs to the model (batch norm without running statistics) and is left alone.
_TRAINING_FLAG = {
    "batch_norm": 5,
    "dropout": 2,
    "feature_dropout": 2,
    "alpha_dropout": 2,
    "instance_norm": 5,
    "lstm": 6,
    "gru": 6,
    "rnn_tanh": 6,
    "rnn_relu": 6,
}

# Operators that do something else in training mode, other than keeping statistics.
SWITCHED = frozenset(_TRAINING_FLAG) - {"batch_norm", "instance_norm"}

# The key under which an attention node notes its dropout probability in training mode, and that argument's position.
TRAINING_DROPOUT = "training_dropout"
_ATTENTION_DROPOUT = 4

# Where a tensor stands among a node's arguments: a position, or a position and the place in the list found there.
Place = int | tuple[int, int]

_OWN_NAMESPACES = ("aten", "prims")


def op_name(node: fx.Node) -> str:
    """The operator's name without overload and in-place underscore (``add`` for ``aten.add_.Tensor``).

    Operators from outside PyTorch keep their namespace: ``mylib::add`` may do anything.

    Examples:
        >>> graph = fx.Graph()
        >>> x = graph.placeholder("x")
        >>> op_name(graph.call_function(torch.ops.aten.add_.Tensor, (x, x)))
        'add'
        >>> op_name(x)
        'placeholder'
    """
    if node.op != "call_function":
        return node.op
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _OWN_NAMESPACES:
        return node.target._schema.name
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return name.rstrip("_") if not name.startswith("__") else name


@dataclass(frozen=True)
class _Switch:
    """An argument of a node that is one thing in training and another in evaluation mode."""

    node: str
    argument: int | str
    training: bool | float
    evaluation: bool | float

    def turn_(self, node: fx.Node, training: bool) -> None:
        value = self.training if training else self.evaluation
        if isinstance(self.argument, int):
            node.update_arg(self.argument, value)
        else:
            node.update_kwarg(self.argument, value)
        if node.target in (torch.ops.aten.batch_norm.default, batch_norm):
            node.target = batch_norm if training else torch.ops.aten.batch_norm.default


def _switch(node: fx.Node) -> _Switch | None:
    name = op_name(node)
    if name == "scaled_dot_product_attention":
        positional = len(node.args) > _ATTENTION_DROPOUT
        captured: Any = node.args[_ATTENTION_DROPOUT] if positional else node.kwargs.get("dropout_p", 0.0)
        place = _ATTENTION_DROPOUT if positional else "dropout_p"
        probability = node.meta.get(TRAINING_DROPOUT, captured)
        return _Switch(node.name, place, probability, captured) if probability != captured else None
    position = _TRAINING_FLAG.get(name)
    if position is None or len(node.args) <= position or node.args[position] is not False:
        return None
    return _Switch(node.name, position, training=True, evaluation=False)


class GraphNetwork(fx.GraphModule):
    """A module that runs a captured graph on its own copy of the weights.

    ``forward`` takes what the user's model takes and returns what it returns. ``state_dict`` keys are the user's
    parameter names. ``train()`` and ``eval()`` flip the dropout and batch-norm flags inside the graph. ``to(device)``
    takes along what the graph itself makes on a device.
    """

    def __init__(self, root: nn.Module | dict[str, Any], graph: fx.Graph) -> None:
        super().__init__(root, graph)
        self._switches = tuple(switch for node in self.graph.nodes if (switch := _switch(node)) is not None)
        super().train(False)

    def train(self, mode: bool = True) -> GraphNetwork:
        if mode != self.training and self._switches:
            nodes = {node.name: node for node in self.graph.nodes}
            for switch in self._switches:
                switch.turn_(nodes[switch.node], mode)
            self.recompile()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GraphNetwork:
        # Every way of moving a module ends here, also where it is a part of another.
        super()._apply(fn, recurse)
        device = device_of(self)
        if device is not None and place_(self.graph, device):
            self.recompile()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphNetwork:
        # torch.fx registers tensors anew in the order of the graph; optimizers and averages go by the order there was.
        state = {key: copy.deepcopy(value, memo) for key, value in self.__dict__.items() if key not in _OF_THE_GRAPH}
        memo[id(self)] = duplicate = _revived(state, copied_graph(self.graph))
        return duplicate

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {key: value for key, value in self.__dict__.items() if key not in _OF_THE_GRAPH}
        return _unpickled, (state, recipe_of(self.graph))


# What a module of torch.fx derives from its graph.
_OF_THE_GRAPH = frozenset(("_graph", "_code", "_lineno_map", "_prologue_start", "_tracer_cls", "_tracer_extras"))


def _unpickled(state: dict[str, Any], recipe: GraphRecipe) -> GraphNetwork:
    return _revived(state, graph_from(recipe))


def _revived(state: dict[str, Any], graph: fx.Graph) -> GraphNetwork:
    """A network with the attributes ``state`` that runs ``graph``; what registers parameters anew is left out."""
    network = GraphNetwork.__new__(GraphNetwork)
    network.__dict__.update(state, _tracer_cls=None, _tracer_extras={})
    network.graph = graph
    return network


def network_of(graph_module: fx.GraphModule) -> GraphNetwork:
    """A :class:`GraphNetwork` over a copy of the graph, the parameters and the buffers (ties are kept)."""
    copied: dict[int, Any] = {}
    attributes: dict[str, Any] = {}
    for node in graph_module.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            original = attribute(graph_module, str(node.target))
            if id(original) not in copied:
                copied[id(original)] = copy.deepcopy(original)
            attributes[str(node.target)] = copied[id(original)]
    return GraphNetwork(attributes, copied_graph(graph_module.graph))


def copied_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph under the same node names; the specs of inputs and outputs are shared."""
    copied = fx.Graph(tracer_cls=graph._tracer_cls)
    copied.output(copied.graph_copy(graph, {}))
    copied._codegen = copy.copy(graph._codegen)
    return copied


def argument_at(node: fx.Node, place: Place) -> Any:
    """The argument of a node at a place."""
    if isinstance(place, int):
        return node.args[place]
    listed: Any = node.args[place[0]]
    return listed[place[1]]


def put_argument_(node: fx.Node, place: Place, argument: Any) -> None:
    """Put ``argument`` where another stands among a node's arguments."""
    if isinstance(place, int):
        node.update_arg(place, argument)
        return
    listed: Any = node.args[place[0]]
    node.update_arg(place[0], [*listed[: place[1]], argument, *listed[place[1] + 1 :]])


def retype_node_(node: fx.Node, dtype: torch.dtype, old: torch.dtype = torch.float32) -> None:
    """Casts and constructors that the capture wrote down as ``old`` follow the graph's new dtype."""

    def swap(value: Any) -> Any:
        return dtype if value is old else value

    node.args = map_aggregate(node.args, swap)
    node.kwargs = map_aggregate(node.kwargs, swap)
    value, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
    if schema is None or not isinstance(value, Tensor) or value.dtype is not old:
        return
    reads = any(isinstance(source.meta.get("val"), Tensor) for source in node.all_input_nodes)
    if any(argument.name == "dtype" for argument in schema.arguments) and not reads:
        node.kwargs = {**node.kwargs, "dtype": dtype}


def attribute(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or constant that a dotted name stands for."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def replace_tensor_(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put ``tensor`` where ``name`` is: a parameter stays a parameter, a buffer a buffer."""
    path, _, leaf = name.rpartition(".")
    owner = attribute(module, path) if path else module
    if leaf in owner._parameters:
        if not isinstance(tensor, nn.Parameter):
            old = owner._parameters[leaf]
            tensor = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)
        owner._parameters[leaf] = tensor
    elif leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        setattr(owner, leaf, tensor)


def delete_unused_(graph_module: fx.GraphModule) -> None:
    """Drop the parameters, buffers and submodules that no node of the graph names any more."""
    used = {node.target for node in graph_module.graph.nodes if node.op in ("get_attr", "call_module")}
    prefixes = {str(name).rsplit(".", k)[0] for name in used for k in range(str(name).count(".") + 1)} | used
    for owner_name, owner in list(graph_module.named_modules(remove_duplicate=False)):
        for table in (owner._parameters, owner._buffers, owner._modules):
            for leaf in list(table):
                if (f"{owner_name}.{leaf}" if owner_name else leaf) not in prefixes:
                    del table[leaf]
