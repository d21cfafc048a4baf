"""What no removal can reach is refused before anything is trained, with the least that can be reached.

requires: targets, and the groups of the dense network that they are on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from l0compress.errors import TargetError
from l0compress.gates.reach import smallest_cost
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups, groups_if_any
from l0compress.graph.groups.resource import Resource
from l0compress.graph.nodes.protection import Protection
from l0compress.training.targets import LATENCY, AbsoluteTarget


def check_reachable(
    targets: Iterable[AbsoluteTarget], groups: Groups, smallest: Callable[[Resource], int] = smallest_cost
) -> None:
    """Refuse targets that no removal can reach; by default only channels are removed.

    What removes most is the same for all of them, so they can be reached together if each of them can be.
    ``smallest`` returns the cost of the smallest model that can be reached.

    Raises:
        TargetError: one of them cannot be; the message has the least that can be reached of each such target, and which
            limits of the graph's protection are in the way.
    """
    reach = [(target, smallest(target.resource(groups))) for target in targets]
    missed = [(target, least) for target, least in reach if least > target.limit]
    if not missed:
        return
    whys = [target.missed_by(least) for target, least in missed]
    ways = " and ".join(target.reachable(least) for target, least in missed)
    limits = in_the_way(groups.graph, [target for target, _ in missed])
    if not limits:
        raise TargetError(" ".join(whys), fix=f"Ask for {ways} or more.")
    raise TargetError(
        f"{' '.join(whys)} In the way: {', '.join(limits)}.",
        fix=f"Ask for {ways} or more, or for less that has to stay.",
    )


def in_the_way(graph: CapturedGraph, targets: Sequence[AbsoluteTarget]) -> tuple[str, ...]:
    """Return those limits of a graph's protection without each of which more could be removed, in a target's unit.

    All of them, where no single one makes a difference.
    """
    limits = graph.protection.limits()

    def least(protection: Protection) -> list[int]:
        groups = groups_if_any(replace(graph, protection=protection))
        return [smallest_cost(target.resource(groups)) for target in targets]

    now = least(graph.protection) if limits else []
    found = tuple(limit for limit in limits if least(graph.protection.without(limit)) != now)
    return found or limits


def check_countable(targets: Iterable[AbsoluteTarget], *, single_weights: bool) -> None:
    """Refuse targets in a unit in which what is to be removed costs nothing.

    Raises:
        TargetError: the bytes of an int8 file or a latency, where single weights become zero.
    """
    if single_weights and any(target.unit == LATENCY for target in targets):
        raise TargetError(
            "Target latency: the time of an ONNX file does not depend on how many of its weights are zero.",
            fix="Pass --granularity structured, or name params, macs or bytes and run the result as a bundle.",
        )
    if single_weights and any(target.unit == "int8_bytes" for target in targets):
        raise TargetError(
            "Target int8_bytes: an int8 file stores a zero as it stores any other weight, so it does not shrink with "
            "single weights.",
            fix="Pass --granularity structured, or name params, macs or bytes.",
        )
