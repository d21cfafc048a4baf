"""Units that never fire: whatever reads them reads zeros, so that the network without them computes the same.

requires: the groups of a graph, and for each value that is read where it may be other than zero.
ensures:  moves whose removal silences nothing but zeros: the masked network is the dense one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn

from l0compress.data import Batch
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.groups import Groups
from l0compress.graph.groups.int8 import leads_to_weights
from l0compress.graph.groups.intervals import intervals
from l0compress.graph.groups.reads import Read
from l0compress.graph.groups.vanish import carries_tensor
from l0compress.graph.labels.values import Value, core, varying
from l0compress.graph.nodes.network import GraphNetwork, argument_at
from l0compress.graph.nodes.recurrence import is_recurrent

# By the number of a read, bool (components,): of which components it may read something else than zero.
Firing = Mapping[int, Tensor]


def provably_firing(groups: Groups) -> Firing:
    """What may fire on some input, as far as intervals can tell.

    Of three units that read shares, the second has only negative weights, and the third is at most 1 - 1.5.

    >>> from l0compress.graph.capture import capture
    >>> from l0compress.graph.groups import find_groups
    >>> net = nn.Sequential(nn.Softmax(-1), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]]))
    >>> _ = net[1].bias.data.copy_(torch.tensor([0.0, 0.0, -1.5]))
    >>> groups = find_groups(capture(net, (torch.zeros(4, 2),)))
    >>> silent_moves(groups, provably_firing(groups))
    tensor([False,  True,  True])
    """
    known = intervals(groups.graph)
    return {
        number: _components_firing(groups, node, ~known[node.name].is_zero if node.name in known else None)
        for number, node in _operands(groups)
    }


def firing_on(groups: Groups, batches: Iterable[Batch], *, device: str = "cpu") -> Firing:
    """What fires on some of the samples."""
    network = groups.graph.module()
    watches = {number: _watch_(network, groups, number, node) for number, node in _operands(groups)}
    network.recompile()
    network.to(device).eval()
    with torch.no_grad():
        for batch in batches:
            batch.to(device).run(network)
    operands = dict(_operands(groups))
    return {number: _components_firing(groups, operands[number], watch.fired) for number, watch in watches.items()}


def silent_moves(groups: Groups, firing: Firing) -> Tensor:
    """bool (num_moves,): the moves that remove units of which nothing that is read fires."""
    read, fires = torch.zeros(2, groups.num_moves + 1, dtype=torch.bool)
    for number, one in enumerate(groups.reads):
        read[one.moves.flatten()] = True
        fires[one.moves[_fires(firing, number, one)].flatten()] = True
    return (read & ~fires)[:-1]


def is_exact(plan: KeepPlan, firing: Firing) -> bool:
    """Whether a plan silences nothing but zeros."""
    for number, read in enumerate(plan.groups.reads):
        dead = ~plan.alive[read.components]
        needed = torch.where(read.survivors < 0, True, plan.alive[read.survivors.clamp(min=0)])
        if bool((dead & needed & _fires(firing, number, read)).any()):
            return False
    return True


def without_silent(groups: Groups, silent: Tensor, firing: Firing) -> KeepPlan:
    """The plan without as many of the ``silent`` moves as the graph can lose together."""
    plan = KeepPlan.without(groups, silent.nonzero().flatten().tolist())
    return plan if is_exact(plan, firing) else KeepPlan.everything(groups)


def _fires(firing: Firing, number: int, read: Read) -> Tensor:
    """bool, for each channel of a read; what nothing is known of may fire."""
    known = firing.get(number)
    return torch.ones_like(read.components, dtype=torch.bool) if known is None else known[read.components]


def _operands(groups: Groups) -> list[tuple[int, fx.Node]]:
    """The activation that each read reads, by the number of the read, where it is a single one."""
    nodes = {node.name: node for node in groups.graph.nodes()}
    found = ((number, _operand(nodes[read.node], read)) for number, read in enumerate(groups.reads))
    return [(number, node) for number, node in found if node is not None and not _varies_freely(groups, node)]


def _varies_freely(groups: Groups, node: fx.Node) -> bool:
    """Whether units are told apart along a size that is free."""
    value, sizes = groups.labelled.values.get(node.name), node.meta["val"].shape
    planes = value.planes if isinstance(value, Value) else ()
    return any(isinstance(sizes[dim], torch.SymInt) for plane in planes for dim in varying(plane))


def _operand(node: fx.Node, read: Read) -> fx.Node | None:
    """What is multiplied: the argument itself or, where that is a weight, what the weight multiplies."""
    source = argument_at(node, read.arg)
    if is_recurrent(node) or not isinstance(source, fx.Node):
        return None
    if not leads_to_weights(source):
        return source
    others = [each for each in node.all_input_nodes if carries_tensor(each) and not leads_to_weights(each)]
    return others[0] if len(others) == 1 else None


def _components_firing(groups: Groups, node: fx.Node, fired: Tensor | None) -> Tensor:
    """bool (components,): those of which a value has an element that may fire, and all that it has none of.

    Args:
        fired: broadcasts against the value of ``node``; None where it was never computed.
    """
    value = groups.labelled.values.get(node.name)
    firing = torch.ones(groups.components.count, dtype=torch.bool)
    if fired is None or not isinstance(value, Value):
        return firing
    for plane in value.planes:
        kept = varying(plane)
        others = [dim for dim in range(fired.dim()) if dim not in kept]
        here = (fired.amax(others, keepdim=True) if others else fired).expand(core(plane).shape).flatten()
        members = torch.from_numpy(groups.components.of(core(plane)).astype("int64")).flatten()
        counts = torch.zeros(groups.components.count, dtype=torch.long).index_add_(0, members, here.long())
        firing[members] = counts[members] > 0
    return firing


class _Watch(nn.Module):
    """Notes where a value was ever other than zero, along the dimensions ``kept``."""

    def __init__(self, kept: frozenset[int]) -> None:
        super().__init__()
        self.kept = kept
        self.fired: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` as it is."""
        others = [dim for dim in range(x.dim()) if dim not in self.kept]
        now = (x != 0).cpu()
        now = now.amax(others, keepdim=True) if others else now
        self.fired = now if self.fired is None else self.fired | now
        return x


def _watch_(network: GraphNetwork, groups: Groups, number: int, operand: fx.Node) -> _Watch:
    """Look at what is read just before it is, since it may be written in place until then."""
    nodes = {node.name: node for node in network.graph.nodes}
    value = groups.labelled.values.get(operand.name)
    kept = frozenset(dim for plane in value.planes for dim in varying(plane)) if isinstance(value, Value) else ()
    watch, reader, name = _Watch(frozenset(kept)), nodes[groups.reads[number].node], f"l0_watch_{number}"
    network.add_submodule(name, watch)
    with network.graph.inserting_before(reader):
        network.graph.call_module(name, (nodes[operand.name],))
    return watch
