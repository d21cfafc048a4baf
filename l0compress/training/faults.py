"""Which layer a number that is not finite comes from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from l0compress.data import Batch
from l0compress.errors import DivergedError
from l0compress.training.held import whole
from l0compress.training.repair.lockstep import inputs_of

EXPLODED = 1e4
ADVICE = (
    "Lower the learning rate (--lr) or clip gradients harder (--clip), or look for extreme values in the data. A "
    "model that divides by flat inputs, or takes their logarithm, needs FinetuneSettings(input_dropout=0): some are "
    "set to zero in training."
)


def is_finite(value: Any) -> bool:
    """Whether every number in a tensor, or in a tree of tensors, is finite.

    >>> is_finite([torch.ones(2), torch.tensor([1, 2])]), is_finite(torch.tensor([0.0, float("nan")]))
    (True, False)
    """
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool(whole(torch.isfinite(tensor).all())) for tensor in tensors)


def broken_parameter(network: nn.Module) -> str | None:
    """The first parameter with a value that is not finite."""
    return next((name for name, parameter in network.named_parameters() if not is_finite(parameter)), None)


def check_parameters(network: nn.Module, where: str) -> None:
    """Refuse to go on with, or to keep, a state that is not finite.

    Raises:
        DivergedError: names the first such parameter.
    """
    name = broken_parameter(network)
    if name is not None:
        raise DivergedError(f"Parameter {_plain(name)!r} has values that are not finite at {where}. {_end()}")


def diverged(value: float, where: str, network: nn.Module, batch: Batch) -> DivergedError:
    """The error for a loss that is not finite or beyond all measure; says where the first such number arises."""
    name = broken_parameter(network)
    if name is not None:
        cause = f"Parameter {_plain(name)!r} is the first with values that are not finite."
    else:
        cause = _first_broken_node(network, batch) or "Every layer's output is finite: it arises in the loss itself."
    return DivergedError(f"The loss became {value:.6g} at {where}. {cause} {_end()}")


def _end() -> str:
    return f"Training stopped. {ADVICE}"


def _plain(name: str) -> str:
    return name.removeprefix("network.")


class _Watching(fx.Interpreter):
    """Runs a graph and remembers the first node whose output is not finite."""

    found: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.found is None and n.op not in ("output", "get_attr") and not is_finite(value):
            self.found = n
        return value


def _first_broken_node(network: nn.Module, batch: Batch) -> str | None:
    """Looks once through the graph that the network runs, with the same batch."""
    graphs = (module for module in network.modules() if isinstance(module, fx.GraphModule))
    module = next(graphs, None)
    if module is None:
        return None
    watching = _Watching(module)
    with torch.no_grad():
        watching.run(*inputs_of(module, batch), enable_io_processing=False)
    node = watching.found
    if node is None:
        return None
    if node.op == "placeholder":
        return f"The batch itself has values that are not finite in input {node.name!r}."
    weights = [str(source.target) for source in _sources(node) if source.op == "get_attr"]
    layer = f", which reads {weights[0]!r}," if weights else ""
    return f"Node {node.name!r}{layer} is the first whose output is not finite."


def _sources(node: fx.Node) -> list[fx.Node]:
    """What a node reads, seen through the factor that a gate puts on a weight."""
    direct = list(node.all_input_nodes)
    return direct + [source for read in direct if read.op == "call_function" for source in read.all_input_nodes]
