"""Resources: what a network uses up as a function of what stays of it, whether it is counted or modelled.

A budget bounds a resource: parameters, multiply-accumulates, bytes, or a time. Whoever holds a network to one (the
penalty on the gates, hardening, the descent of the scores, the check of what can be reached) asks a :class:`Resource`,
and knows nothing of where its numbers come from.

The word is that of Yang et al., "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications", ECCV
2018, section 3.1, where any number of resources is bounded at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.groups import Groups, Left
from l0compress.graph.groups.live_counts import Terms
from l0compress.graph.groups.weights import nonzero_cost


class Resource(ABC):
    """What is used of one resource, as a function of which moves of :attr:`groups` stay.

    It never decreases where more moves stay: hardening relies on that when it looks for what fits by bisection.

    Attributes:
        unit: what is measured, as a target names it: ``macs``.
        groups: the moves that it is a function of. They may be those of a network that was cut already; what is used
            is that of the whole network which is left.
    """

    unit: str
    groups: Groups

    @abstractmethod
    def of(self, left: Left) -> int:
        """What is used exactly, where ``left``, of :attr:`groups`, is what a removal leaves."""

    @abstractmethod
    def expected(self, probabilities: Tensor) -> Tensor:
        """What is used in expectation: a scalar, differentiable in ``probabilities``.

        Args:
            probabilities: (num_moves,): that each move is kept, independently of the others. The result is on their
                device, in its widest float; at 0 and 1 it is :meth:`of`, up to rounding, if nothing else dies.
        """

    @abstractmethod
    def after(self, groups: Groups, keep: Tensor, moves: Tensor) -> Resource:
        """The same resource as a function of what can still be cut after a removal.

        Args:
            groups: those of the smaller graph.
            keep: bool (num_moves,), closed: the moves of :attr:`groups` that stayed.
            moves: int64 (groups.num_moves,): which of them each move of the smaller graph is; -1 where it is none.
        """

    def cost(self, keep: Tensor) -> int:
        """What is used exactly after removing the moves with ``keep``, bool (num_moves,), False.

        Raises:
            PlanError: a layer would be left empty, or less would stay than has to.
        """
        return self.of(self.groups.left(keep))

    @property
    def dense(self) -> int:
        """What is used with nothing removed."""
        return self.cost(torch.ones(self.groups.num_moves, dtype=torch.bool))

    @property
    def is_estimate(self) -> bool:
        """Whether :meth:`used_by` may differ from what was predicted."""
        return False

    def used_by(self, small: CapturedGraph, keep: Tensor, *, sparse: bool = False) -> int:
        """What a finished network uses: ``small``, which is left of :attr:`groups` where ``keep`` stays.

        With ``sparse`` zeros in its weights are left out.
        """
        del small, sparse
        return self.cost(keep)


@dataclass(frozen=True, eq=False)
class Counted(Resource):
    """What is counted on a graph: ``params``, ``macs``, ``bytes`` or ``int8_bytes``.

    >>> from torch import nn
    >>> from l0compress.graph.capture import capture
    >>> from l0compress.graph.groups import find_groups
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> macs = Counted(find_groups(capture(net, (torch.zeros(2, 4),))), "macs")
    >>> half = torch.full((macs.groups.num_moves,), 0.5, dtype=torch.float64)  # of 8 hidden units and 4 inputs
    >>> macs.dense, macs.expected(half).item()
    (48, 16.0)
    """

    groups: Groups
    unit: str

    def of(self, left: Left) -> int:
        return round(float(self.groups.costs.evaluate(left.alive.double(), self.unit, live=left.fate.live)))

    def expected(self, probabilities: Tensor) -> Tensor:
        return self.groups.expected_cost(probabilities, self.unit)

    def after(self, groups: Groups, keep: Tensor, moves: Tensor) -> Counted:
        del keep, moves  # the smaller graph has shapes of its own
        return Counted(groups, self.unit)

    def used_by(self, small: CapturedGraph, keep: Tensor, *, sparse: bool = False) -> int:
        del keep  # counted on the graph itself, whatever was predicted
        return (nonzero_cost if sparse else cost)(small).get(self.unit)


@dataclass(frozen=True, eq=False)
class Modelled(Resource):
    """What a model fitted to a dense network says: a sum of products of the live counts of its lines.

    The model speaks of the dense network alone, so every decision on a smaller one is looked up there.

    Attributes:
        groups: the moves that it is a function of.
        unit: what the model measures.
        dense_groups: those of the network that the model was fitted to.
        terms: over the lines of ``dense_groups.costs``.
        kept: bool (dense_groups.num_moves,), closed: what is left of the dense network.
        dense_moves: int64 (groups.num_moves,): the dense move that each move is, -1 where it is none.
    """

    groups: Groups
    unit: str
    dense_groups: Groups
    terms: Terms
    kept: Tensor
    dense_moves: Tensor

    @classmethod
    def on(cls, groups: Groups, unit: str, terms: Terms) -> Modelled:
        """The model on the dense network that it was fitted to.

        >>> from torch import nn
        >>> from l0compress.graph.capture import capture
        >>> from l0compress.graph.groups import find_groups
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = find_groups(capture(net, (torch.zeros(2, 4),)))
        >>> Modelled.on(groups, "macs", groups.costs.terms["macs"]).dense
        48
        """
        everything = torch.ones(groups.num_moves, dtype=torch.bool)
        return cls(groups, unit, groups, terms, everything, torch.arange(groups.num_moves))

    def of(self, left: Left) -> int:
        dense = self.dense_groups.left(self._dense(left.keep))
        return self.exact(dense)

    def expected(self, probabilities: Tensor) -> Tensor:
        known = self.dense_moves >= 0
        device = probabilities.device
        whole = self.kept.to(device, probabilities.dtype)
        dense = whole.index_put((self.dense_moves[known].to(device),), probabilities[known.to(device)])
        alive = self.dense_groups.alive_probabilities(dense)
        return self.terms.total(self.counts(alive), None)

    def exact(self, dense: Left) -> int:
        """What is used exactly, where ``dense`` is what is left of the dense network."""
        return round(float(self.terms.total(self.counts(dense.alive.double()), dense.fate.live)))

    def counts(self, alive: Tensor) -> Tensor:
        """The live counts that the terms multiply, given (the probability of) each dense component."""
        return self.dense_groups.costs.lines.of(alive)

    def after(self, groups: Groups, keep: Tensor, moves: Tensor) -> Modelled:
        dense_moves = torch.where(moves < 0, -1, self._padded(moves))
        return replace(self, groups=groups, kept=self._dense(keep), dense_moves=dense_moves)

    def _padded(self, moves: Tensor) -> Tensor:
        return self.dense_moves[moves.clamp(min=0)] if len(self.dense_moves) else moves

    def _dense(self, keep: Tensor) -> Tensor:
        """bool (dense_groups.num_moves,): a decision on :attr:`groups` as one on the dense network."""
        dropped = self.dense_moves[~keep]
        kept = self.kept.clone()
        kept[dropped[dropped >= 0]] = False
        return kept
