"""A captured network with gates in it.

requires: a graph that :func:`~l0compress.gates.attach.attach` has rewritten.
ensures:  the gates' parameters, the expected cost of the network, and the network without gates, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from l0compress.errors import InputError, PlanError
from l0compress.gates.decay import weight_groups
from l0compress.gates.factors import ReadFactors, converted_type
from l0compress.gates.folding import fold
from l0compress.gates.hard_concrete import Gates, HardConcrete
from l0compress.gates.reach import smallest_cost, smallest_keep
from l0compress.gates.refusals import CALL_ERRORS, refused_call
from l0compress.gates.sparse_cost import SparseCost
from l0compress.gates.weight_gates import WeightGate, starting_log_alpha
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import Groups
from l0compress.graph.groups.resource import Counted, Resource
from l0compress.graph.groups.weights import Weight
from l0compress.graph.nodes.checksum import weights_checksum
from l0compress.graph.nodes.describe import counted, headed
from l0compress.graph.nodes.network import GraphNetwork, attribute, retype_node_

FACTORS = "l0_read_factors"
WEIGHT_GATE = "l0_weight_gate_"
MOVES = "log_alpha"  # the name of the moves' gates among all gates
GATE_RATE = 0.05
TRAINABLE = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class Start:
    """Where gates started: see :func:`~l0compress.gates.weight_gates.starting_log_alpha`."""

    log_alpha: float
    magnitude_slope: float = 0.0

    def is_at(self, log_alpha: Tensor, weight: Tensor | None = None) -> bool:
        """Return whether gates, those of a single ``weight`` or of moves, are where they started."""
        now = log_alpha.detach().cpu().float()
        if weight is None:
            return bool((now == torch.tensor(float(self.log_alpha))).all())
        return torch.equal(now, starting_log_alpha(weight, self.log_alpha, self.magnitude_slope).float())


class GatedNetwork(nn.Module):
    """A captured network with gates on channels, single weights or both; made by :func:`gate`.

    ``forward`` has the signature of the user's model. In training mode the gates are sampled, one draw per call;
    in evaluation mode they are at their median. ``double`` and ``bfloat16`` also convert the dtypes that the graph
    has recorded as float32; the gates stay in float32 or wider.

    Attributes:
        groups: the moves that the gates stand for, in order; without moves if only weights are gated.
        network: the rewritten graph.
        sparse: the weights that have gates of their own.
        start: where the gates started; None if they were attached with values of their own.
    """

    def __init__(
        self, groups: Groups, network: GraphNetwork, sparse: tuple[Weight, ...] = (), start: Start | None = None
    ) -> None:
        super().__init__()
        self.groups = groups
        self.network = network
        self.sparse = sparse
        self.start = start

    @property
    def gates(self) -> HardConcrete:
        """The gates of the moves: ``gates.log_alpha`` is learned."""
        return self.read_factors.gates

    @property
    def weight_gates(self) -> dict[str, WeightGate]:
        """The gates of single weights by parameter name; empty if only channels are gated."""
        return {
            weight.name: cast(WeightGate, self.network.get_submodule(f"{WEIGHT_GATE}{position}"))
            for position, weight in enumerate(self.sparse)
        }

    @property
    def read_factors(self) -> ReadFactors:
        return cast(ReadFactors, self.network.get_submodule(FACTORS))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the user's model returns.

        Raises:
            InputError: the inputs are not those that the model was captured with, up to its free sizes.
        """
        try:
            return self.network(*args, **kwargs)
        except CALL_ERRORS as error:
            refusal = refused_call(self.groups.graph, args, kwargs, self._weight_type())
            if refusal is None:
                raise
            raise refusal from error

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the network's own parameters by their original names, without the gates."""
        return {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if not name.startswith((f"{FACTORS}.", WEIGHT_GATE))
        }

    def gate_parameters(self) -> dict[str, nn.Parameter]:
        """Return all gate parameters: ``log_alpha`` of the moves, and each gated parameter's gates under its name.

        For a gated parameter that is itself called ``log_alpha`` the name is ``log_alpha.log_alpha``.
        """
        found = {MOVES: self.gates.log_alpha} if self.groups.num_moves else {}
        return {**found, **{gate_key(name): gate.log_alpha for name, gate in self.weight_gates.items()}}

    def param_groups(self, *, lr: float, gate_lr: float = GATE_RATE, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer of ``torch.optim``: matrices, vectors (biases, norms) and gates.

        Weights have the rate ``lr``, gates ``gate_lr``; only matrices are decayed, as in the built-in training.

        >>> from l0compress import capture, gate
        >>> gated = gate(capture(nn.Linear(4, 2), (torch.zeros(2, 4),)))
        >>> [(len(group["params"]), group["lr"]) for group in gated.param_groups(lr=1e-3, weight_decay=0.01)]
        [(1, 0.001), (1, 0.001), (1, 0.05)]
        """
        weights = [{**group, "lr": lr} for group in weight_groups(self.weights(), weight_decay=weight_decay)]
        return [*weights, {"params": list(self.gate_parameters().values()), "lr": gate_lr, "weight_decay": 0.0}]

    def gate_modules(self) -> list[Gates]:
        """Return the modules that hold the gates: one for the moves, and one for each gated weight."""
        return [*([self.gates] if self.groups.num_moves else []), *self.weight_gates.values()]

    def has_moved(self) -> bool:
        """Return whether any gate has moved from where :func:`gate` put it."""
        if self.start is None:
            return True
        module = self.groups.graph.graph_module
        return not (
            self.start.is_at(self.gates.log_alpha)
            and all(self.start.is_at(g.log_alpha, attribute(module, name)) for name, g in self.weight_gates.items())
        )

    def is_of(self, groups: Groups) -> bool:
        """Return whether ``groups`` belong to the network that was gated here; a copy counts as the same network."""
        if groups is self.groups:
            return True
        mine, other = self.groups.graph, groups.graph
        return _shape_of(groups) == _shape_of(self.groups) and weights_checksum(mine.state()) == weights_checksum(
            other.state()
        )

    def shrink(self, plan: KeepPlan) -> CapturedGraph:
        """Return the small trained model that remains when ``plan`` is carried out on this network.

        The values of kept gates are folded into the weights, and what the plan drops is cut out.

        Raises:
            PlanError: the plan belongs to another network.
        """
        if not isinstance(plan, KeepPlan):
            raise PlanError(
                f"shrink takes a plan, but this is a {type(plan).__name__}.",
                fix="Write gated.shrink(l0compress.harden(gated, budget)).",
            )
        if _shape_of(plan.groups) != _shape_of(self.groups) or (plan.unfit and not self.is_of(plan.groups)):
            raise PlanError(
                "the plan was made for another network.", fix="Make it of this one: l0compress.harden(gated, budget)."
            )
        plan.decision().check_fits(self.groups.graph)
        return shrink(fold(self, plan), plan.decision())

    def expected_cost(self, resource: Resource | str) -> Tensor:
        """Return the expected cost after removal: a scalar, differentiable in the gates.

        ``resource`` is a unit (of ``UNITS``), or a resource as a function of :attr:`groups`. Single weights are counted
        in units.
        """
        probability = self.gates.probability_nonzero()
        resource = self._resource(resource)
        if not self.sparse:
            return resource.expected(probability)
        return self._sparse_cost.expected(self.weight_gates, probability, resource.unit)

    def smallest_cost(self, resource: Resource | str, keep: Tensor | None = None) -> int:
        """Return the cost of the smallest model that hardening can reach; every gated weight keeps one element.

        ``keep``, bool ``(num_moves,)``, says which moves stay; None leaves as few as possible.
        """
        resource = self._resource(resource)
        if not self.sparse:
            return smallest_cost(resource) if keep is None else resource.cost(keep)
        fewest = smallest_keep(self.groups, torch.zeros(self.groups.num_moves)) if keep is None else keep
        return self._sparse_cost.smallest(fewest, resource.unit)

    def _resource(self, resource: Resource | str) -> Resource:
        return Counted(self.groups, resource) if isinstance(resource, str) else resource

    def graph(self) -> CapturedGraph:
        """Return the network without gates, with a copy of the current weights: what gates multiply is left out."""
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        graph, dtype = self.groups.graph, self._weight_type()
        if dtype is not None and dtype != _floating_type(graph.state()):
            graph = graph.to(dtype)
        return graph.with_state(state)

    def _weight_type(self) -> torch.dtype | None:
        return _floating_type(self.weights())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GatedNetwork:
        before = {weight.dtype for weight in self.weights().values() if weight.is_floating_point()}
        changes = {dtype: new for dtype in before if (new := converted_type(fn, dtype)) != dtype}
        for dtype in changes.values():
            check_trainable(dtype)
        super()._apply(fn, recurse)
        for node in self.network.graph.nodes if changes else ():
            for dtype, new in changes.items():
                retype_node_(node, new, dtype)
        if changes:
            self.network.recompile()
        return self

    @cached_property
    def _sparse_cost(self) -> SparseCost:
        return SparseCost(self.groups, self.sparse)

    def __getstate__(self) -> dict[str, Any]:
        # Derived from the rest, and holds graph nodes, which can be neither copied nor pickled.
        return {name: value for name, value in self.__dict__.items() if name != "_sparse_cost"}

    def __repr__(self) -> str:
        moves = f"gates on {counted(self.groups.num_moves, 'move')} in {counted(len(self.groups.groups), 'group')}"
        weights = f"{counted(sum(w.numel for w in self.sparse), 'gate')} on {counted(len(self.sparse), 'weight')}"
        parts = [*([moves] if self.groups.num_moves else []), *([weights] if self.sparse else [])]
        likely = self.gates.probability_nonzero().detach().cpu() > 0.5
        lines = [
            f"{group.name} {group.kind}: {int(likely[list(group.moves)].sum()):,} of {len(group.moves):,} open"
            for group in self.groups.groups
        ]
        for name, one in self.weight_gates.items():
            lines.append(f"{name}: {int((one.probability_nonzero() > 0.5).sum()):,} of {one.log_alpha.numel():,} open")
        mode = "training" if self.training else "evaluation"
        return headed(f"GatedNetwork({', '.join(parts)}; {mode} mode)", lines)


def gate_key(name: str) -> str:
    """Return the name of a parameter's gates among all gates.

    >>> gate_key("0.weight"), gate_key("log_alpha")
    ('0.weight', 'log_alpha.log_alpha')
    """
    return f"{name}.{MOVES}" if name == MOVES else name


def check_trainable(dtype: torch.dtype) -> None:
    """Check that weights of this type can be trained with gates.

    Raises:
        InputError: they cannot.
    """
    if dtype.is_floating_point and dtype not in TRAINABLE:
        raise InputError(
            f"a gated network cannot be {str(dtype).removeprefix('torch.')}, which is too narrow for training.",
            fix="Use bfloat16, or keep float32 weights and run forward under torch.autocast.",
        )


def _floating_type(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    return next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)


def _shape_of(groups: Groups) -> list[tuple[str, str, int]]:
    return [(group.name, group.kind, len(group.moves)) for group in groups.groups]
