"""Vanishing: what becomes of a graph when widths reach zero, node by node.

requires: the values of the label pass, and which lines of channels a plan leaves empty.
ensures:  a :class:`Vanished` that says which nodes are gone, which have become constants, and which the output still
          needs; or why the graph cannot lose that much exactly.

A contraction that sums over nothing is zero, so only its bias is left of it: a constant, the same for every sample and
position. Constants pass through elementwise operators and batch norm; what else reads one gets it expanded. A branch
without channels so leaves nothing behind but a bias, and where there was none, nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_symbols, is_concrete_int

from l0compress.graph.groups.moves import Lines
from l0compress.graph.labels.walk import Labelled
from l0compress.graph.nodes.mutation import original, writers_of, writes, written_after
from l0compress.graph.nodes.network import op_name
from l0compress.graph.nodes.shapes import node_shape, shape_of
from l0compress.graph.operators.record import is_pointwise, operator_of


@dataclass(frozen=True, eq=False)
class Vanished:
    """What becomes of the nodes.

    Attributes:
        hollow: nodes with an empty dimension; nothing of them is left.
        constants: nodes that are the same for every sample and position from now on.
        zeros: those of them that are zero.
        passed: sums with a zero, and the operand that they are equal to.
        live: nodes that the output still needs.
        obstacle: why the graph cannot lose that much, None where it can.
    """

    hollow: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()
    zeros: frozenset[str] = frozenset()
    passed: dict[str, str] = field(default_factory=dict)
    live: frozenset[str] | None = None
    obstacle: str | None = None

    def goes_on(self, name: str) -> bool:
        """Whether a node computes from what flows through the graph, as it did before."""
        return name not in self.constants and (self.live is None or name in self.live)


NOTHING = Vanished()
NOTHING_KEPT: Mapping[str, str] = {}


class Vanishing:
    """Works out :class:`Vanished` for sets of empty lines, each once."""

    def __init__(self, labelled: Labelled, lines: Lines, kept: Mapping[str, str] = NOTHING_KEPT) -> None:
        """``kept`` has the nodes that must not go, and what they are called."""
        self._labelled, self._lines, self._kept = labelled, lines, kept
        self._known: dict[frozenset[int], Vanished] = {frozenset(): NOTHING}

    def of(self, empty: frozenset[int]) -> Vanished:
        """What becomes of the graph when the lines ``empty`` have lost every channel."""
        if empty not in self._known:
            self._known[empty] = self._with_kept(_Walk(self._labelled, self._lines, empty).outcome())
        return self._known[empty]

    def _with_kept(self, found: Vanished) -> Vanished:
        """The outcome, with an obstacle where something would go that has to stay."""
        if found.obstacle is not None or found.live is None:
            return found
        gone = next((name for node, name in self._kept.items() if node not in found.live), None)
        return found if gone is None else Vanished(obstacle=f"{gone!r} is to be kept")


class _Walk:
    def __init__(self, labelled: Labelled, lines: Lines, empty: frozenset[int]) -> None:
        self.labelled, self.lines, self.empty = labelled, lines, empty
        self.hollow: set[str] = set()
        self.constants: set[str] = set()
        self.zeros: set[str] = set()
        self.passed: dict[str, str] = {}
        self.needs: dict[fx.Node, list[fx.Node]] = {}
        self.writers = writers_of(labelled.graph.nodes())
        self.obstacle: str | None = None

    def outcome(self) -> Vanished:
        for node in self.labelled.graph.nodes():
            self.visit_(node)
            if self.obstacle is not None:
                return Vanished(obstacle=self.obstacle)
        if self._cut_off():
            return Vanished(obstacle="the output would no longer depend on the input")
        hollow, constants, zeros = frozenset(self.hollow), frozenset(self.constants), frozenset(self.zeros)
        return Vanished(hollow, constants, zeros, dict(self.passed), self._live())

    def visit_(self, node: fx.Node) -> None:
        if self._is_hollow(node):
            self.hollow.add(node.name)
        elif node.op == "call_function":
            gone = [source for source in node.all_input_nodes if source.name in self.hollow]
            fixed = [source for source in node.all_input_nodes if source.name in self.constants]
            base = self.writers.get(node)
            if base is not None and base.name in self.constants and original(node) is not base:
                self.obstacle = f"{node.name!r} writes in place through a view"
            elif not carries_tensor(node):
                if gone or fixed:  # a size of it, which is read off the model's inputs instead
                    self.needs[node] = []
            elif gone:
                self._without_(node)
            elif fixed:
                self._with_constant_(node)

    def _is_hollow(self, node: fx.Node) -> bool:
        parts = self.lines.of_node.get(node.name, ())
        return bool(parts) and all(not self.empty.isdisjoint(part) for part in parts)

    def _without_(self, node: fx.Node) -> None:
        """A node that something is left of although an operand is gone."""
        if operator_of(node).joins:
            self.needs[node] = [source for source in node.all_input_nodes if source.name not in self.hollow]
            return
        if not leaves_bias(node, self.hollow):
            self.obstacle = f"{op_name(node)} cannot do without {node.all_input_nodes[0].name!r}"
            return
        bias = added_to(node)
        if bias is not None and (bias.op != "get_attr" or bias.meta["val"].dim() != 1):
            self.obstacle = f"{node.name!r} adds something other than a bias"
            return
        self.needs[node] = [] if bias is None else [bias]
        self.constants.add(node.name)
        if bias is None:
            self.zeros.add(node.name)

    def _with_constant_(self, node: fx.Node) -> None:
        if writes_to_constant(node, self.constants) and len(node.all_input_nodes[0].users) > 1:
            self.obstacle = f"{node.name!r} writes in place into a value that is read again"
            return
        tensors = [source for source in node.all_input_nodes if carries_tensor(source)]
        moving = [s for s in tensors if s.name not in self.constants and s.op != "get_attr"]
        other = _kept_operand(node, self.zeros, self.writers)
        if other is not None and other.name not in self.constants:
            self.passed[node.name] = other.name
            self.needs[node] = [other]
        elif not moving and passes_constant(node):
            self.constants.add(node.name)
            if len(tensors) == 1 and tensors[0].name in self.zeros and _keeps_zero(node):
                self.zeros.add(node.name)
        elif not spreads(node, self.constants):
            unknown = [s.name for s in tensors if s.name in self.constants and not _sizes_known(s)]
            if unknown:
                self.obstacle = f"the size of {unknown[0]!r} depends on the data"

    def _cut_off(self) -> bool:
        """Whether a tensor of the output depended on an input and does not any more."""
        before, after = self._dependent(lambda node: node.all_input_nodes), self._dependent(self._sources)
        (output,) = (node for node in self.labelled.graph.nodes() if node.op == "output")
        return any(node in before and node not in after for node in output.all_input_nodes)

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        if node.name in self.hollow:
            return []
        return self.needs.get(node, node.all_input_nodes)

    def _dependent(self, sources: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.labelled.graph.nodes():
            # A size says nothing of what an input holds.
            reads = carries_tensor(node) and any(source in found for source in sources(node) if carries_tensor(source))
            if reads or node.op == "placeholder":
                found.add(node)
        return found

    def _live(self) -> frozenset[str]:
        nodes = list(self.labelled.graph.nodes())
        live = {node for node in nodes if node.op == "output"}
        # What is written through one view may be read through another, so that no user tells of it.
        while True:
            for node in reversed(nodes):
                if node in live:
                    live.update(self._sources(node))
            more = {node for node, base in self.writers.items() if base in live and node.name not in self.hollow} - live
            if not more:
                return frozenset(node.name for node in live)
            live |= more


def carries_tensor(node: fx.Node) -> bool:
    """Whether a node returns a tensor or a list of them, and not a number."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))


def leaves_bias(node: fx.Node, hollow: Container[str]) -> bool:
    """Whether nothing but a bias is left of a node that has lost the operands ``hollow``."""
    empty_sum = operator_of(node).empty_sum
    return empty_sum is not None and empty_sum.holds(node, hollow)


def added_to(node: fx.Node) -> fx.Node | None:
    """The node that a contraction adds to its sum, as a bias is."""
    empty_sum = operator_of(node).empty_sum
    if empty_sum is None or empty_sum.bias is None:
        return None
    given = node.args[empty_sum.bias] if len(node.args) > empty_sum.bias else node.kwargs.get("bias")
    return given if isinstance(given, fx.Node) else None


def writes_to_constant(node: fx.Node, constants: Iterable[str]) -> bool:
    """Whether an operator works in place on a tensor that has become a constant."""
    first = node.args[0] if node.args else None
    return writes(node) and isinstance(first, fx.Node) and first.name in constants


def passes_constant(node: fx.Node) -> bool:
    """Whether the result of constants of size 1 is a constant of size 1 along the same dimensions."""
    if not isinstance(node.meta["val"], Tensor):
        return False
    known = operator_of(node).of_constant
    return is_pointwise(node) or (known is not None and known.passes(node))


def _keeps_zero(node: fx.Node) -> bool:
    known = operator_of(node).of_constant
    return known is not None and known.keeps_zero


def spreads(node: fx.Node, constants: Iterable[str]) -> bool:
    """Whether a constant operand of size 1 gives the same result as the whole one: elementwise beside a whole one."""
    if not is_pointwise(node) or not isinstance(node.meta["val"], Tensor):
        return False
    known = set(constants)
    whole = [node_shape(s) for s in node.all_input_nodes if carries_tensor(s) and s.name not in known]
    return bool(whole) and tuple(torch.broadcast_shapes(*whole)) == node_shape(node)


def _kept_operand(node: fx.Node, zeros: set[str], writers: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """What a sum with a zero is equal to, where it has the very shape and type of the sum."""
    if op_name(node) not in ("add", "sub") or len(node.all_input_nodes) != 2:
        return None
    left, right = node.args[:2]
    if isinstance(right, fx.Node) and right.name in zeros and isinstance(left, fx.Node):
        kept = left
    elif isinstance(left, fx.Node) and left.name in zeros and isinstance(right, fx.Node):
        kept = right if op_name(node) == "add" and not node.kwargs else None
    else:
        return None
    if kept is None or kept.op == "get_attr" or written_after(kept, writers) or written_after(node, writers):
        return None  # what is one tensor from now on must not be written as one of two
    mine, sum_of = kept.meta["val"], node.meta["val"]
    return kept if shape_of(mine) == shape_of(sum_of) and mine.dtype == sum_of.dtype else None


def _sizes_known(node: fx.Node) -> bool:
    """Whether every size of a tensor is a number or follows from a size of the model's inputs."""
    known = input_sizes(node.graph).keys()
    return all(free_symbols(size) <= known for size in node.meta["val"].shape if not is_concrete_int(size))


def input_sizes(graph: fx.Graph) -> dict[Any, tuple[fx.Node, int]]:
    """Where the model's inputs have each free size: the symbol, the placeholder and its dimension."""
    found: dict[Any, tuple[fx.Node, int]] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            for dim, size in enumerate(node.meta["val"].shape):
                if not is_concrete_int(size) and size.node.expr.is_Symbol:
                    found.setdefault(size.node.expr, (node, dim))
    return found
