"""What stays whole, and which operator at which line of the user's source is the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import fx, nn

from l0compress.errors import NothingToPruneError
from l0compress.graph.groups.components import Components
from l0compress.graph.groups.moves import Found
from l0compress.graph.groups.roots import root_of
from l0compress.graph.labels.space import MEETS, FrozenFact
from l0compress.graph.labels.values import flattened, varying
from l0compress.graph.labels.walk import Labelled
from l0compress.graph.nodes.network import attribute, op_name
from l0compress.graph.nodes.sources import source_line
from l0compress.graph.operators.convolution import is_convolution
from l0compress.graph.operators.step import NO_RULE


@dataclass(frozen=True)
class Frozen:
    """A parameter dimension that cannot be cut.

    Attributes:
        where: the parameter's name.
        dim: its dimension.
        channels: how many of its channels are frozen.
        op: the operator that froze it.
        reason: why, for people.
        source: ``file.py:line`` of the user's code, empty where the capture does not know.
        shape: of the whole parameter.
    """

    where: str
    dim: int
    channels: int
    op: str
    reason: str
    source: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FrozenReason:
    """All parameter dimensions that cannot be cut for one reason, by one operator, at one line of the user's code.

    Attributes:
        op, reason, source: as of :class:`Frozen`.
        dims: how many dimensions of parameters.
        params: how many elements they hold, those that lie on two of the dimensions counted once.
    """

    op: str
    reason: str
    source: str
    dims: int
    params: int

    @property
    def sentence(self) -> str:
        """Operator and reason for people, each once; how to teach a rule is said elsewhere."""
        if self.reason.startswith(NO_RULE):
            return self.reason.partition(";")[0]
        return self.reason if not self.op or self.op in self.reason else f"{self.op}: {self.reason}"


def by_reason(places: Iterable[Frozen]) -> tuple[FrozenReason, ...]:
    """Frozen places merged by reason, operator and line; those that hold most parameters first.

    Examples:
        >>> weight = Frozen("a.weight", 0, 4, "topk", "why", "m.py:3", (4, 5))
        >>> by_reason([weight, Frozen("a.bias", 0, 4, "topk", "why", "m.py:3", (4,))])
        (FrozenReason(op='topk', reason='why', source='m.py:3', dims=2, params=24),)
    """
    merged: defaultdict[tuple[str, str, str], list[Frozen]] = defaultdict(list)
    for place in places:
        merged[place.op, place.reason, place.source].append(place)
    rows = [FrozenReason(*key, len(members), _elements(members)) for key, members in merged.items()]
    return tuple(sorted(rows, key=lambda row: (-row.params, row.reason, row.source, row.op)))


def _elements(places: list[Frozen]) -> int:
    """Elements of parameters on at least one of the frozen dimensions: all but those free along every one."""
    free: dict[str, list[int]] = {}
    shapes = {place.where: place.shape for place in places}
    for place in places:
        sizes = free.setdefault(place.where, list(place.shape))
        sizes[place.dim] -= place.channels
    return sum(prod(shape) - prod(free[where]) for where, shape in shapes.items())


def frozen_places(labelled: Labelled, components: Components, found: Found, refused: Set[int]) -> tuple[Frozen, ...]:
    """Every parameter dimension with channels that no move removes, with the reason of the first of them."""
    removable = np.zeros(components.count, dtype=bool)
    for index, removal in enumerate(found.removals):
        if index not in refused:
            removable[list(removal.components)] = True
    dynamic = {c for index in refused for c in found.removals[index].components}
    places: list[Frozen] = []
    seen: set[int] = set()
    for name, value in labelled.parameters.items():
        tensor = attribute(labelled.graph.graph_module, name)
        if not isinstance(tensor, nn.Parameter) or id(tensor) in seen:  # tied ones count once
            continue
        seen.add(id(tensor))
        kernel = _kernel_dims(labelled, name, len(value.shape))
        for plane in value.planes:
            (dim,) = varying(plane)
            members = components.of(flattened(plane))
            stuck = members[~removable[members]]
            if dim in kernel or not len(stuck):
                continue
            op, reason, source = _explain(labelled, components, found, dynamic, int(stuck[0]))
            places.append(Frozen(name, dim, len(stuck), op, reason, source, value.shape))
    return tuple(places)


def unknown_operators(labelled: Labelled) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Operators that froze something for want of a rule, as ``namespace::name``, and the lines that call them."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for fact in labelled.space.frozen:
        if fact.reason.startswith(NO_RULE):
            found[_full_name(fact.node)].add(source_line(fact.node))
    return tuple((op, tuple(sorted(lines - {""}))) for op, lines in sorted(found.items()))


def _full_name(node: fx.Node) -> str:
    return node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else op_name(node)


def _kernel_dims(labelled: Labelled, name: str, rank: int) -> frozenset[int]:
    """Kernel positions are not channels; listing them as frozen would only hide what matters."""
    for node in labelled.graph.nodes():
        named = node.op == "get_attr" and node.target == name
        if named and any(is_convolution(user) and user.args[1] is node for user in node.users):
            return frozenset(range(2, rank))
    return frozenset()


def _explain(
    labelled: Labelled, components: Components, found: Found, dynamic: set[int], component: int
) -> tuple[str, str, str]:
    facts = labelled.space.frozen
    index = int(components.reasons[component])
    if index < 0:
        if component in dynamic:
            return "matmul", "its channels are folded into a dynamic dimension where they are multiplied", ""
        index = found.refused.get(component, -2)
    if 0 <= index < len(facts):
        return op_name(facts[index].node), _reason(labelled, facts[index]), source_line(facts[index].node)
    if index == len(facts):
        return "cat", "it is joined with elements that belong to no channel", ""
    if index == -1:
        return "", "removing any part of it would leave a layer empty", ""
    return "", "no closed set of channels contains it", ""


def _reason(labelled: Labelled, fact: FrozenFact) -> str:
    """The reason of a fact, and the one behind it where it has met what was stopped elsewhere."""
    root = root_of(labelled, fact) if fact.reason == MEETS else None
    if isinstance(root, FrozenFact):
        line = source_line(root.node)
        where = f"{op_name(root.node)} ({line})" if line else op_name(root.node)
        return f"{fact.reason}, since at {where} {root.reason}"
    if root is not None:
        kind = "input" if root.op == "placeholder" else "constant"
        return f"{fact.reason}: it comes from the {kind} {root.target!s}"
    return fact.reason


def nothing_to_prune(frozen: Iterable[Frozen], most: int = 5) -> NothingToPruneError:
    """The error of a graph whose channels are all frozen; it lists ``most`` of the reasons."""
    rows = by_reason(frozen)
    reasons = [
        f"{row.sentence} ({row.source + '; ' if row.source else ''}{row.dims} dimension{'s' if row.dims > 1 else ''}, "
        f"{row.params:,} parameters)"
        for row in rows[:most]
    ]
    more = [f"and {len(rows) - most} more"] if len(rows) > most else []
    return NothingToPruneError(
        "no channel of this model can be removed.",
        fix=(
            f"What stays whole, and why: {'; '.join(reasons + more) or 'it has no parameters'}. "
            "A model needs at least one layer between its input and its output whose width only other layers see."
        ),
    )
