"""The expected cost of a network with gates on channels and on single weights, in the user's unit.

requires: the groups of a graph (possibly without moves) and its weights.
ensures:  exact if gates are independent: a weight's element counts with the probability of its own gate times those
          of the channels that it connects, ``sum_ij p_out[i] p_in[j] p_w[ij]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from math import ceil

import torch
from torch import Tensor

from l0compress.devices import constant_on, widest_float
from l0compress.gates.weight_gates import WeightGate
from l0compress.graph.groups import Groups
from l0compress.graph.groups.weights import INDEX_BYTES, Use, Weight
from l0compress.graph.labels.space import MacsFact
from l0compress.graph.labels.values import flattened, varying

Lines = dict[int, Tensor]
# How many elements of one weight are left, given the probabilities of its lines and how often each element counts.
Count = Callable[[Lines, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class SparseCost:
    """Costs of a graph in which both channels and single weights may be removed.

    Attributes:
        groups: what can be cut, and what that saves.
        weights: the weights that may hold zeros.
    """

    groups: Groups
    weights: tuple[Weight, ...]

    def expected(self, gates: Mapping[str, WeightGate], moves: Tensor, unit: str) -> Tensor:
        """Return the expected cost after removal: a scalar in the device's widest float, differentiable in the gates.

        Args:
            gates: by name of the weight.
            moves: (num_moves,): the probability that each move is kept.
            unit: ``params``, ``macs`` or ``bytes``. ``bytes`` counts every weight as a CSR matrix, even where a dense
                one would be smaller, so that its slope is never zero.
        """
        if not self.groups.num_moves:
            each, constant = self._rates(unit)
            terms = [gates[name].expected_cost(costs) for name, costs in each.items()]
            return torch.stack(terms).sum() + constant
        return self._total({name: partial(_counted_gates, each) for name, each in gates.items()}, moves, unit)

    def of_probabilities(self, present: Mapping[str, Tensor], moves: Tensor, unit: str) -> Tensor:
        """Return the same for given probabilities that the elements of each weight are not zero."""
        return self._total({name: partial(_counted, each) for name, each in present.items()}, moves, unit)

    def _total(self, counters: Mapping[str, Count], moves: Tensor, unit: str) -> Tensor:
        alive = self._alive(moves)
        total = self.groups.expected_cost(moves, unit)
        for weight in self.weights:
            total = total - self._saved(weight, counters[weight.name], alive, unit)
        return total

    def each(self, weight: Weight, unit: str) -> float | Tensor:
        """Return what one nonzero of a weight costs in the unsliced network: a number, or a tensor of its shape."""
        if unit == "macs":
            return weight.macs_each() / self.groups.graph.batch_size
        return 1.0 if unit == "params" else float(weight.element_bytes + INDEX_BYTES)

    def constant(self, unit: str) -> float:
        """Return what is left of the unsliced network's cost with every weight zero."""
        whole = self.groups.cost_of(torch.ones(self.groups.num_moves, dtype=torch.bool)).get(unit)
        for weight in self.weights:
            if unit == "macs":
                whole -= sum(use.macs for use in weight.uses) / self.groups.graph.batch_size
            elif unit == "params":
                whole -= weight.numel
            else:
                whole -= weight.numel * weight.element_bytes - weight.csr_bytes(0)
        return float(whole)

    def smallest(self, keep: Tensor, unit: str) -> int:
        """Return the cost with the moves of ``keep``, and as little of every remaining weight as has to stay."""
        alive = self._alive(keep.double())
        cost = float(self.groups.expected_cost(keep.double(), unit))
        for weight in self.weights:
            # A single element, and beside it the share that is asked for.
            share = self.groups.graph.protection.density_of(weight.names)
            fewest = torch.full(weight.shape, share, dtype=torch.float64)
            each = self.each(weight, unit)
            least = float(each.min()) if isinstance(each, Tensor) else each
            cost -= max(float(self._saved(weight, partial(_counted, fewest), alive, unit)) - least, 0.0)
        return ceil(cost - 1e-6)

    def _alive(self, moves: Tensor) -> Tensor:
        """Return the probability that each component is left."""
        return self.groups.alive_probabilities(moves)

    def _rates(self, unit: str) -> tuple[dict[str, float | Tensor], float]:
        """Return the cost of one nonzero of each weight, and the cost without any; computed once."""
        if unit not in self._known_rates:
            each = {weight.name: self.each(weight, unit) for weight in self.weights}
            self._known_rates[unit] = (each, self.constant(unit))
        return self._known_rates[unit]

    @cached_property
    def _known_rates(self) -> dict[str, tuple[dict[str, float | Tensor], float]]:
        return {}

    def _saved(self, weight: Weight, count: Count, alive: Tensor, unit: str) -> Tensor:
        lines = {
            dim: alive.index_select(0, constant_on(line, alive.device))
            for dim, line in self._lines[weight.name].items()
        }
        if unit == "macs":
            saved = [self._saved_macs(weight, use, count, lines, alive) for use in weight.uses if use.macs]
            return torch.stack(saved).sum() if saved else alive.new_zeros(())
        whole, left = _whole(weight.shape, lines), count(lines, None)
        if unit == "params":
            return whole - left
        rows = lines[0].sum() if 0 in lines else weight.shape[0]
        stored = left * (weight.element_bytes + INDEX_BYTES) + INDEX_BYTES * (rows + 1)
        return whole * weight.element_bytes - stored

    def _saved_macs(self, weight: Weight, use: Use, count: Count, lines: Lines, alive: Tensor) -> Tensor:
        fact, members = self._facts[use.node, use.order]
        macs = alive.new_full((), fact.coefficient)
        for line in members:
            macs = macs * alive.index_select(0, constant_on(line, alive.device)).sum()
        counts = use.counts
        whole = (
            _whole(weight.shape, lines)
            if counts is None
            else _counted(constant_on(counts, alive.device, alive.dtype), lines, None)
        )
        share = use.macs / (self._dense_macs(fact) * self.groups.graph.batch_size)
        return macs * share * (1 - count(lines, counts) / whole.clamp_min(torch.finfo(whole.dtype).tiny))

    def _dense_macs(self, fact: MacsFact) -> float:
        size = fact.coefficient
        for plane in fact.planes:
            size *= len(flattened(plane))
        return size

    @cached_property
    def _lines(self) -> dict[str, Lines]:
        """The components along each labelled dimension of each weight."""
        components, values = self.groups.components, self.groups.labelled.parameters
        return {
            weight.name: {
                min(varying(plane)): torch.from_numpy(components.of(flattened(plane))).long()
                for plane in values[weight.name].planes
            }
            for weight in self.weights
        }

    @cached_property
    def _facts(self) -> dict[tuple[str, int], tuple[MacsFact, tuple[Tensor, ...]]]:
        """The products of each node in order, and the components that they run over."""
        found: dict[tuple[str, int], tuple[MacsFact, tuple[Tensor, ...]]] = {}
        orders: dict[str, int] = {}
        for fact in self.groups.labelled.space.macs:
            order = orders.setdefault(fact.node.name, 0)
            members = (self.groups.components.of(flattened(plane)) for plane in fact.planes)
            found[fact.node.name, order] = (fact, tuple(torch.from_numpy(line).long() for line in members))
            orders[fact.node.name] += 1
        return found


def _whole(shape: tuple[int, ...], lines: Lines) -> Tensor:
    """Return the expected number of elements of a tensor, given the probability of each line's indices."""
    some = next(iter(lines.values()), None)
    total = torch.ones((), dtype=torch.float64) if some is None else some.new_ones(())
    for dim, size in enumerate(shape):
        total = total * (lines[dim].sum() if dim in lines else size)
    return total


def _counted(present: Tensor, lines: Lines, counts: Tensor | None) -> Tensor:
    """Return the same, given the probability of each element too, and how often each counts (None: once)."""
    left = present if counts is None else present * constant_on(counts, present.device, present.dtype)
    for dim in reversed(range(present.dim())):
        left = left.movedim(dim, -1) @ lines[dim].to(left.dtype) if dim in lines else left.sum(dim)
    return left.to(widest_float(left.device))


def _counted_gates(gates: WeightGate, lines: Lines, counts: Tensor | None) -> Tensor:
    """Return the same for elements that are there with the probability of their gates."""
    log_alpha = gates.log_alpha
    along = [
        lines[dim].to(log_alpha.dtype) if dim in lines else log_alpha.new_ones(size)
        for dim, size in enumerate(log_alpha.shape)
    ]
    columns = reduce(lambda left, right: torch.outer(left, right).flatten(), along[1:], log_alpha.new_ones(1))
    each = None if counts is None else constant_on(counts, log_alpha.device, log_alpha.dtype)
    return gates.expected_sum(along[0], columns, each)
