"""What stays whole, and which operator at which line of the user's source is the reason."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from torch import fx, nn

from l0compress.graph.components import Components
from l0compress.graph.labels import Labelled
from l0compress.graph.moves import Found
from l0compress.graph.network import attribute, op_name
from l0compress.graph.values import flattened, varying

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARY = re.compile(r"site-packages[/\\]torch[/\\]|^<")


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
    """

    where: str
    dim: int
    channels: int
    op: str
    reason: str
    source: str


def source_line(node: fx.Node) -> str:
    """The innermost line of the user's own code that made a node."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])]
    return f"{own[-1][0].replace(chr(92), '/').rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


def frozen_places(labelled: Labelled, components: Components, found: Found, refused: Set[int]) -> tuple[Frozen, ...]:
    """Every parameter dimension with channels that no move removes, with the reason of the first of them."""
    removable = np.zeros(components.count, dtype=bool)
    for index, removal in enumerate(found.removals):
        if index not in refused:
            removable[list(removal.components)] = True
    dynamic = {c for index in refused for c in found.removals[index].components}
    places = []
    for name, value in labelled.parameters.items():
        if not isinstance(attribute(labelled.graph.graph_module, name), nn.Parameter):
            continue
        kernel = _kernel_dims(labelled, name, len(value.shape))
        for plane in value.planes:
            (dim,) = varying(plane)
            members = components.of(flattened(plane))
            stuck = members[~removable[members]]
            if dim in kernel or not len(stuck):
                continue
            op, reason, source = _explain(labelled, components, found, dynamic, int(stuck[0]))
            places.append(Frozen(name, dim, len(stuck), op, reason, source))
    return tuple(places)


def _kernel_dims(labelled: Labelled, name: str, rank: int) -> frozenset[int]:
    """Kernel positions are not channels; listing them as frozen would only hide what matters."""
    for node in labelled.graph.nodes():
        named = node.op == "get_attr" and node.target == name
        if named and any(op_name(user).startswith("conv") and user.args[1] is node for user in node.users):
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
        return op_name(facts[index].node), facts[index].reason, source_line(facts[index].node)
    if index == len(facts):
        return "cat", "it is joined with elements that belong to no channel", ""
    if index == -1:
        return "", "removing any part of it would leave a layer empty", ""
    return "", "no closed set of channels contains it", ""
