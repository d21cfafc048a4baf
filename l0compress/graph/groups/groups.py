"""Groups: what is cut together, what is read where, and what stays whole for which reason.

requires: a captured graph.
ensures:  :class:`Groups`, in which a plan is one bool a move.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from l0compress.devices import constant_on, widest_float
from l0compress.errors import NothingToPruneError, PlanError
from l0compress.graph.capture import CapturedGraph, check_captured
from l0compress.graph.groups.closure import Closure
from l0compress.graph.groups.components import Components, solve
from l0compress.graph.groups.cost import UNITS, Cost
from l0compress.graph.groups.cost_model import CostModel, cost_model
from l0compress.graph.groups.frozen import Frozen, frozen_places, nothing_to_prune
from l0compress.graph.groups.moves import Lines, Removal, find_lines, find_moves, moves_of_component
from l0compress.graph.groups.naming import Group, Move, named_groups
from l0compress.graph.groups.protecting import Floors, floors_of, kept_nodes, protected
from l0compress.graph.groups.reads import Read, find_reads, ungateable
from l0compress.graph.groups.vanish import Vanished, Vanishing
from l0compress.graph.labels.walk import Labelled, label
from l0compress.graph.nodes.describe import counted, headed


@dataclass(frozen=True, eq=False)
class Left:
    """What a removal leaves.

    Attributes:
        keep: bool (num_moves,), closed.
        alive: bool (components,): what is left.
        fate: what becomes of the nodes.
    """

    keep: Tensor
    alive: Tensor
    fate: Vanished


@dataclass(frozen=True, eq=False)
class Groups:
    """Everything known about what can be cut from a graph. See :func:`find_groups`."""

    graph: CapturedGraph
    moves: tuple[Move, ...]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    reads: tuple[Read, ...]
    labelled: Labelled
    components: Components
    lines: Lines
    removals: tuple[Removal, ...]
    costs: CostModel
    moves_of_component: Tensor
    vanishing: Vanishing
    floors: Floors

    @property
    def num_moves(self) -> int:
        return len(self.moves)

    @cached_property
    def group_of_move(self) -> Tensor:
        """int64 (num_moves,): the group of each move."""
        return torch.tensor([move.group for move in self.moves], dtype=torch.long)

    @cached_property
    def _closure(self) -> Closure:
        return Closure.of(self.components, self.lines, self.removals)

    def alive_components(self, keep: Tensor) -> Tensor:
        """bool (components,): what is left after removing the moves with ``keep`` False, and all that follows.

        Raises:
            PlanError: ``keep`` has the wrong shape or dtype, or a layer would be left empty.
        """
        return self.left(keep).alive

    def left(self, keep: Tensor) -> Left:
        """What removing the moves with ``keep`` False leaves, and all that follows from it.

        Raises:
            PlanError: as :meth:`alive_components`.
        """
        if keep.dtype != torch.bool or tuple(keep.shape) != (self.num_moves,):
            raise PlanError(
                f"a keep mask must be bool of shape ({self.num_moves},), one entry per move, but it is {keep.dtype} "
                f"of shape {tuple(keep.shape)}.",
                fix="",
            )
        dead = self._closure.dead(keep.numpy())
        if dead is None:
            raise PlanError(
                "this plan would leave a tensor that must stay whole without some channels.",
                fix="Keep at least one move of every group.",
            )
        empty = self._closure.emptied(dead)
        fate = self.vanishing.of(empty)
        if fate.obstacle is not None:
            raise PlanError(
                f"this plan would leave {self.lines.names[min(empty)]!r} without any channel, and {fate.obstacle}.",
                fix="Keep at least one move of every group that cannot vanish.",
            )
        closed = torch.from_numpy(self._closure.kept(keep.numpy(), dead))
        missed = self.floors.missed(closed)
        if missed is not None:
            raise PlanError(
                f"this plan would leave {int(self.floors.counts(closed)[missed]):,} moves of "
                f"{self.floors.names[missed]!r}, but {int(self.floors.least[missed]):,} have to stay (min_density).",
                fix="Keep more of them, or ask for a lower min_density.",
            )
        return Left(closed, torch.from_numpy(~dead), fate)

    def close(self, keep: Tensor) -> Tensor:
        """The same plan with the moves dropped that die as a consequence.

        Raises:
            PlanError: as :meth:`alive_components`.
        """
        return self.left(keep).keep

    def cost_of(self, keep: Tensor) -> Cost:
        """The exact cost of the model after removing the moves with ``keep`` False.

        Raises:
            PlanError: as :meth:`alive_components`.
        """
        left = self.left(keep)
        return self._cost(left.alive, left.fate)

    def cost_of_components(self, alive: Tensor) -> Cost:
        return self._cost(alive, self.fate_of(alive))

    def _cost(self, alive: Tensor, fate: Vanished) -> Cost:
        counts = [round(float(self.costs.evaluate(alive.double(), unit, live=fate.live))) for unit in UNITS]
        return Cost(*counts)

    def fate_of(self, alive: Tensor) -> Vanished:
        """What becomes of the nodes of the graph where only the components ``alive`` are left."""
        return self.vanishing.of(self._closure.emptied(~alive.numpy()))

    def expected_cost(self, probabilities: Tensor, unit: str) -> Tensor:
        """Expected cost after removal, given the probability that each move is kept.

        Args:
            probabilities: (num_moves,), differentiable.
            unit: ``params``, ``macs``, ``bytes`` or ``int8_bytes``.

        Returns:
            A scalar in float64 (float32 where the device has no float64), equal to :meth:`cost_of` where the
            probabilities are 0 and 1 and nothing more dies as a consequence.
        """
        return self.costs.evaluate(self.alive_probabilities(probabilities), unit)

    def alive_probabilities(self, probabilities: Tensor) -> Tensor:
        """The probability that each component is left, ``(components,)``, given that of each move."""
        wide = probabilities.to(widest_float(probabilities.device))
        padded = torch.cat([wide, wide.new_ones(1)])
        moves = constant_on(self.moves_of_component, padded.device)
        # Column by column: the backward of prod() is slow.
        return reduce(operator.mul, (padded.index_select(0, column) for column in moves.unbind(-1)))

    def __repr__(self) -> str:
        stuck = counted(len(self.frozen), "parameter dimension")
        title = (
            f"Groups({counted(len(self.groups), 'group')}, {counted(self.num_moves, 'move')}; {stuck} cannot be cut)"
        )
        return headed(title, [f"{group.name} {group.kind}: {len(group.moves):,}" for group in self.groups])

    def __deepcopy__(self, memo: dict[int, Any]) -> Groups:
        # Nothing of it ever changes, and a copy of a gated network is the same network.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        wanted = tuple((group.name, group.kind, len(group.moves)) for group in self.groups)
        return _found_again, (self.graph, wanted, self.floors)

    def with_floors(self, floors: Floors) -> Groups:
        """The same groups with other floors under them; one that has to keep a move cannot vanish."""
        held = {group for (moves, count) in floors.sets() if count for group in self.group_of_move[moves].tolist()}
        groups = tuple(
            replace(group, can_vanish=group.can_vanish and number not in held)
            for number, group in enumerate(self.groups)
        )
        return replace(self, groups=groups, floors=floors)


def _found_again(
    graph: CapturedGraph, wanted: tuple[tuple[str, str, int], ...], floors: Floors | None = None
) -> Groups:
    """The groups of a graph that comes out of a pickle: they follow from it, given the same rules."""
    groups = find_groups(graph) if wanted else groups_without_moves(graph)
    if tuple((group.name, group.kind, len(group.moves)) for group in groups.groups) != wanted:
        raise PlanError(
            "the groups in this pickle are not those that this program finds in their graph.",
            fix="Call register_operator for the same operators as before, and use the same version of l0compress.",
        )
    return groups if floors is None else groups.with_floors(floors)


def find_groups(graph: CapturedGraph) -> Groups:
    """Find everything that can be cut from ``graph``.

    Raises:
        NothingToPruneError: no channel can be removed; the message lists the reasons.
        InputError: ``graph`` is no captured graph.

    Examples:
        >>> from l0compress.graph.capture import capture
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> groups = find_groups(capture(net, (torch.zeros(2, 4),)))
        >>> [(group.name, group.kind, len(group.moves)) for group in groups.groups]
        [('0', 'channels', 8), ('0', 'inputs', 4)]
    """
    check_captured(graph, "find_groups")
    labelled = label(graph)
    components = protected(labelled, solve(labelled))
    lines = find_lines(labelled, components)
    vanishing = Vanishing(labelled, lines, kept_nodes(labelled))
    found = find_moves(labelled, components, lines, lambda empty: vanishing.of(empty).obstacle is None)
    refused = ungateable(labelled, components, found.removals)
    removals = tuple(removal for index, removal in enumerate(found.removals) if index not in refused)
    frozen = frozen_places(labelled, components, found, refused)
    if not removals:
        raise nothing_to_prune(frozen)
    costs = cost_model(labelled, components)
    groups, removals = named_groups(labelled, components, removals, costs)
    groups = tuple(
        replace(group, can_vanish=_can_vanish(group, removals, components, lines, vanishing)) for group in groups
    )
    members = [(group, move) for group in range(len(groups)) for move in groups[group].moves]
    moves = tuple(
        Move(move, group, f"{groups[group].name} {groups[group].kind}[{move - groups[group].moves[0]}]")
        for group, move in members
    )
    table = moves_of_component(removals, components.count)
    reads = find_reads(labelled, components, table, len(removals))
    floors = floors_of(labelled, components, groups, [removal.components for removal in removals])
    whole = Groups(
        graph, moves, groups, frozen, reads, labelled, components, lines, removals, costs, table, vanishing, floors
    )
    return whole.with_floors(floors)


def groups_if_any(graph: CapturedGraph) -> Groups:
    """As :func:`find_groups`; without moves where nothing can be removed."""
    try:
        return find_groups(graph)
    except NothingToPruneError:
        return groups_without_moves(graph)


def groups_without_moves(graph: CapturedGraph) -> Groups:
    """The groups of a graph whose channels all stay: its one plan keeps everything.

    >>> from l0compress.graph.capture import capture
    >>> groups_without_moves(capture(torch.nn.Linear(4, 2), (torch.zeros(2, 4),))).num_moves
    0
    """
    labelled = label(graph)
    components = solve(labelled)
    lines = find_lines(labelled, components)
    return Groups(
        graph=graph,
        moves=(),
        groups=(),
        frozen=(),
        reads=(),
        labelled=labelled,
        components=components,
        lines=lines,
        removals=(),
        costs=cost_model(labelled, components),
        moves_of_component=moves_of_component((), components.count),
        vanishing=Vanishing(labelled, lines),
        floors=Floors.none(0),
    )


def _can_vanish(
    group: Group, removals: tuple[Removal, ...], components: Components, lines: Lines, vanishing: Vanishing
) -> bool:
    dead, obstacle = components.close({c for move in group.moves for c in removals[move].components})
    return obstacle is None and vanishing.of(lines.emptied(dead)).obstacle is None
