"""A captured model: one flat graph of aten operators, on which everything else happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from l0compress.data.inputs import Form
from l0compress.errors import InputError
from l0compress.graph.capture.batch import BatchDims, batch_of
from l0compress.graph.capture.rnn_layers import any_length
from l0compress.graph.capture.training_mode import TrainingOnly
from l0compress.graph.nodes.describe import headed, input_texts, size_text
from l0compress.graph.nodes.network import GraphNetwork, network_of, retype_node_
from l0compress.graph.nodes.pickling import inputs_of, put_inputs_
from l0compress.graph.nodes.protection import UNPROTECTED, Protection


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A model as one graph. Immutable: every stage returns a new one.

    It is on the CPU, wherever the model was; :meth:`module` is a network that ``.to(device)`` moves.

    Attributes:
        graph_module: aten operators over parameters and buffers under the user's names. Never mutated.
        example_args: positional example inputs, batch of at least 2.
        example_kwargs: keyword example inputs.
        dynamic_shapes: what ``torch.export.export`` needs to capture :meth:`module` again, by input name.
        batch_dims: the dimension of each input that the batch is, leaf by leaf of ``(example_args, example_kwargs)``;
            None where an input has no batch.
        training_only: what the user's model does in training mode that the graph does not: random numbers, and buffers
            that its own code updates. Empty for an exported program, which does not tell.
        protection: what is to be kept of it, whatever else is removed.
    """

    graph_module: fx.GraphModule
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any]
    dynamic_shapes: dict[str, Any] | None
    batch_dims: BatchDims
    training_only: tuple[TrainingOnly, ...] = ()
    protection: Protection = UNPROTECTED

    def module(self) -> GraphNetwork:
        """A trainable copy, in eval mode; ``forward`` takes what the user's model takes."""
        return network_of(self.graph_module)

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, detached, not copied."""
        return {name: tensor.detach() for name, tensor in self.graph_module.state_dict().items()}

    def with_state(self, state: Mapping[str, Tensor]) -> CapturedGraph:
        """The same graph with other weights.

        Raises:
            KeyError: a parameter or buffer of the graph is missing in ``state``.
        """
        duplicate: fx.GraphModule = network_of(self.graph_module)
        with torch.no_grad():
            for name, tensor in duplicate.state_dict().items():
                tensor.copy_(state[name])
        return replace(self, graph_module=duplicate)

    def protected(
        self,
        *,
        keep: str | Sequence[str] | None = None,
        min_density: float | str | Sequence[float | str] | None = None,
    ) -> CapturedGraph:
        """The same graph with limits on what may be removed, in place of any that it had; every plan keeps to them.

        Args:
            keep: globs of layers of which nothing is removed: none of their output channels, and no single weight.
            min_density: the least share of its moves that every group keeps, and every weight of its elements where
                single weights go: ``0.1`` for all, ``"layer1.*=0.5"`` for some, or a list of these.

        A glob stands for a parameter if it matches its name or that of a module which it is in.

        >>> from l0compress.graph.capture import capture
        >>> from l0compress.graph.groups import find_groups
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 2))
        >>> graph = capture(net, (torch.zeros(2, 4),)).protected(keep="0")
        >>> [(group.name, group.kind) for group in find_groups(graph).groups]
        [('1', 'channels')]

        Raises:
            InputError: a glob stands for nothing, or a share is none.
        """
        protection = Protection.of(keep, min_density)
        protection.check_matches([str(node.target) for node in self.nodes() if node.op == "get_attr"])
        return replace(self, protection=protection)

    def to(self, dtype: torch.dtype) -> CapturedGraph:
        """The same graph with floating-point weights and example inputs in ``dtype`` (float64 for exact checks)."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        args, kwargs = pytree.tree_map(cast, (self.example_args, self.example_kwargs))
        duplicate = network_of(self.graph_module)
        own = {tensor.dtype for tensor in self.state().values() if tensor.is_floating_point()}
        for node in duplicate.graph.nodes:
            for old in own | {torch.float32}:
                retype_node_(node, dtype, old)
        duplicate.to(dtype)
        duplicate.recompile()
        return propagate_shapes(replace(self, graph_module=duplicate, example_args=args, example_kwargs=kwargs))

    @property
    def batch_size(self) -> int:
        """Samples in the example inputs."""
        return batch_of(self.example_args, self.example_kwargs, self.batch_dims)

    @property
    def form(self) -> Form:
        """How the model is called."""
        return Form(self.example_args, self.example_kwargs, self.batch_dims)

    def nodes(self) -> Iterator[fx.Node]:
        return iter(self.graph_module.graph.nodes)

    def __repr__(self) -> str:
        graph = self.graph_module.graph
        return headed(f"CapturedGraph({size_text(self.graph_module, graph)})", input_texts(graph))

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedGraph:
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (self.example_args, self.example_kwargs))
        duplicate = network_of(self.graph_module)
        return replace(self, graph_module=duplicate, example_args=args, example_kwargs=kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.example_args, self.example_kwargs, self.dynamic_shapes, self.batch_dims)
        inputs, symbols = inputs_of(self.graph_module.graph)
        return _unpickled, (network_of(self.graph_module), inputs, symbols, fields, self.protection)


def _unpickled(
    network: GraphNetwork,
    inputs: tuple[Any, ...],
    symbols: Mapping[Any, int],
    fields: Any,
    protection: Protection = UNPROTECTED,
) -> CapturedGraph:
    put_inputs_(network.graph, inputs, symbols)
    return propagate_shapes(CapturedGraph(network, *fields, protection=protection))


def check_captured(graph: object, verb: str) -> None:
    """Raises:
    InputError: what is given to ``verb`` is no captured graph; the message says what to write.
    """
    if isinstance(graph, CapturedGraph):
        return
    raise InputError(
        f"{verb} takes a captured graph, but this is {type(graph).__name__}.",
        fix="Capture the model first: graph = l0compress.capture(model, (example_input,)).",
    )


def propagate_shapes(graph: CapturedGraph) -> CapturedGraph:
    """Recompute every node's shape after a rewrite, keeping dynamic dimensions dynamic."""
    module = graph.graph_module
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    leaves = pytree.tree_leaves((graph.example_args, graph.example_kwargs))
    values = [node.meta["val"] for node in placeholders]
    mode = next(value.fake_mode for value in values if isinstance(value, torch._subclasses.FakeTensor))
    with mode:
        inputs = [
            torch.empty(value.shape, dtype=leaf.dtype, device=leaf.device) if isinstance(value, Tensor) else value
            for value, leaf in zip(values, leaves, strict=True)
        ]
    # Without the Python dispatcher some operators ask symbolic tensors for concrete sizes.
    with torch.no_grad(), enable_python_dispatcher(), any_length():
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
    return graph
