"""Limits: the most that a decision may use of each of several resources, all of which hold at once.

requires: the groups that are decided on.
ensures:  a decision fits where every bound is kept. What fits does so with less in it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l0compress.errors import PlanError
from l0compress.graph.groups import Groups
from l0compress.graph.groups.groups import Left
from l0compress.graph.groups.resource import Counted, Resource
from l0compress.training.targets import AbsoluteTarget

CLOSE_ENOUGH = 0.97


@dataclass(frozen=True, eq=False)
class Bound:
    """The most that may be used of one resource."""

    resource: Resource
    most: int

    def __str__(self) -> str:
        """Return the bound for people."""
        return f"{self.most:,} {self.resource.unit}"


@dataclass(frozen=True, eq=False)
class Limits:
    """What a decision on ``groups`` has to keep to.

    Attributes:
        groups: the moves that are decided on.
        bounds: one a resource, each a function of the same moves.
    """

    groups: Groups
    bounds: tuple[Bound, ...]

    @classmethod
    def counted(cls, groups: Groups, most: dict[str, int]) -> Limits:
        """Limits on what is counted, by unit.

        >>> from l0compress.graph import capture, find_groups
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> limits = Limits.counted(find_groups(capture(net, (torch.zeros(2, 4),))), {"macs": 48, "params": 40})
        >>> everything = torch.ones(12, dtype=torch.bool)
        >>> limits.costs(everything), limits.fits(everything), round(limits.share(everything), 3)
        ((48, 58), False, 1.45)
        """
        return cls(groups, tuple(Bound(Counted(groups, unit), number) for unit, number in most.items()))

    @classmethod
    def of(cls, groups: Groups, targets: Iterable[AbsoluteTarget]) -> Limits:
        """What targets allow of the dense network of ``groups``."""
        return cls(groups, tuple(Bound(target.resource(groups), target.limit) for target in targets))

    def at(self, most: Sequence[int]) -> Limits:
        """The same resources with other bounds, in their order."""
        pairs = zip(self.bounds, most, strict=True)
        return replace(self, bounds=tuple(replace(bound, most=number) for bound, number in pairs))

    def after(self, groups: Groups, keep: Tensor, moves: Tensor) -> Limits:
        """The same bounds on what can still be cut after a removal; arguments as of :meth:`Resource.after`."""
        return Limits(groups, tuple(Bound(b.resource.after(groups, keep, moves), b.most) for b in self.bounds))

    @property
    def resources(self) -> tuple[Resource, ...]:
        """What is bounded."""
        return tuple(bound.resource for bound in self.bounds)

    @property
    def most(self) -> tuple[int, ...]:
        """The bounds as numbers."""
        return tuple(bound.most for bound in self.bounds)

    @property
    def by_unit(self) -> dict[str, int]:
        """The bounds by unit."""
        return {bound.resource.unit: bound.most for bound in self.bounds}

    def dense(self) -> tuple[int, ...]:
        """What is used with nothing (more) removed."""
        return self.costs(torch.ones(self.groups.num_moves, dtype=torch.bool))

    def costs(self, keep: Tensor) -> tuple[int, ...]:
        """What a decision uses of each resource.

        Raises:
            PlanError: it would leave a layer empty, or less than has to stay.
        """
        return self._costs(self.groups.left(keep))

    def fits(self, keep: Tensor) -> bool:
        """Whether a decision that empties no layer keeps to every bound."""
        return self.allow(self.costs(keep))

    def allow(self, costs: Sequence[int]) -> bool:
        """Whether so much may be used."""
        return all(cost <= bound.most for cost, bound in zip(costs, self.bounds, strict=True))

    def fitted(self, keep: Tensor) -> Tensor | None:
        """The decision, closed; None where it does not fit or cannot be carried out."""
        try:
            left = self.groups.left(keep)
        except PlanError:
            return None
        return left.keep if self.allow(self._costs(left)) else None

    def share(self, keep: Tensor) -> float:
        """What a decision uses of the bound that it uses most of, as a share of it."""
        return max(cost / bound.most for cost, bound in zip(self.costs(keep), self.bounds, strict=True))

    def is_used(self, keep: Tensor) -> bool:
        """Whether a decision uses so much of any bound that nothing is to be gained by looking for more."""
        return any(cost > CLOSE_ENOUGH * b.most for cost, b in zip(self.costs(keep), self.bounds, strict=True))

    def _costs(self, left: Left) -> tuple[int, ...]:
        return tuple(bound.resource.of(left) for bound in self.bounds)

    def __str__(self) -> str:
        """Return the bounds for people."""
        return " and ".join(map(str, self.bounds))
