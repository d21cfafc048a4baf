"""New nodes in a captured graph, with their shapes and with the line of the user's source that they stand for."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._dispatch.python import enable_python_dispatcher


class Emitter:
    """Adds nodes in front of ``at``."""

    def __init__(self, graph: fx.Graph, at: fx.Node) -> None:
        self.graph = graph
        self.at = at

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of an operator."""
        with self.graph.inserting_before(self.at):
            node = self.graph.call_function(target, args, kwargs)
        values = pytree.tree_map(lambda leaf: leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf, (args, kwargs))
        fakes = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch._subclasses.FakeTensor)]
        if fakes:
            with fakes[0].fake_mode, torch.no_grad(), enable_python_dispatcher():
                node.meta["val"] = target(*values[0], **values[1])
        else:
            node.meta["val"] = target(*values[0], **values[1])
        if "stack_trace" in self.at.meta:
            node.meta["stack_trace"] = self.at.meta["stack_trace"]
        return node

    def number(self, a: Any, b: Any) -> fx.Node:
        """The product of two sizes."""
        return self(operator.mul, a, b)
