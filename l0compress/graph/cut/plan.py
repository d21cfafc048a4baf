"""Keep plans: which moves stay, and perhaps which single weights. Random, by hand, or from hardened gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from l0compress.errors import PlanError
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.groups import Groups
from l0compress.graph.groups.cost import Cost
from l0compress.graph.labels.values import flattened, varying
from l0compress.graph.nodes.checksum import weights_checksum
from l0compress.graph.nodes.describe import counted, headed

Keeps = tuple[Tensor | None, ...]
_KEEP, _MASK = "plan.keep", "plan.mask."


@dataclass(frozen=True, eq=False)
class KeepPlan:
    """A plan that a graph can follow.

    Attributes:
        groups: what it is a plan of.
        keep: bool (num_moves,), True = keep; closed (what dies as a consequence is False already).
        masks: by name of a parameter, bool of its dense shape, True = keep; a parameter without one keeps all its
            elements. What is dropped becomes zero where it is not cut anyway.
        unfit: weights that the plan must not be carried out on, by their checksum, and what they are: a plan that comes
            out of training would throw the training away on the weights from before.
    """

    groups: Groups
    keep: Tensor
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    unfit: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_keep(cls, groups: Groups, keep: Tensor) -> KeepPlan:
        """Close a keep mask into a plan.

        Raises:
            PlanError: the mask does not fit the groups, or would leave a layer empty.
        """
        return cls(groups, groups.close(keep.cpu()))

    @classmethod
    def everything(cls, groups: Groups) -> KeepPlan:
        """The plan that removes nothing."""
        return cls(groups, torch.ones(groups.num_moves, dtype=torch.bool))

    @classmethod
    def random(cls, groups: Groups, density: float = 0.5, seed: int = 0) -> KeepPlan:
        """Keep about ``density`` of the moves of every group, drawn by ``seed``; at least one where it cannot vanish.

        Raises:
            PlanError: ``density`` is not between 0 and 1.

        Examples:
            >>> from l0compress.graph.capture import capture
            >>> from l0compress.graph.groups import find_groups
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> groups = find_groups(capture(net, (torch.zeros(2, 4),)))
            >>> [len(kept) for kept in KeepPlan.random(groups, density=0.5).kept().values()]
            [4, 2]
        """
        if not 0 <= density <= 1:
            raise PlanError(f"density must lie between 0 and 1, but it is {density!r}.", fix="")
        generator = torch.Generator().manual_seed(seed)
        drop: list[int] = []
        for group in groups.groups:
            kept = max(0 if group.can_vanish else 1, round(density * len(group.moves)))
            order = torch.randperm(len(group.moves), generator=generator).tolist()
            drop.extend(group.moves[position] for position in order[kept:])
        return cls.without(groups, drop)

    @classmethod
    def without(cls, groups: Groups, drop: Sequence[int]) -> KeepPlan:
        """Drop as many of the listed moves as the graph can lose together; earlier ones have precedence."""
        return cls.further(cls.everything(groups), drop)

    @classmethod
    def further(cls, plan: KeepPlan, drop: Sequence[int]) -> KeepPlan:
        """Drop beyond what ``plan`` drops as many of the listed moves as can go; earlier ones have precedence."""
        groups, keep = plan.groups, plan.keep
        pending = [list(drop)] if drop else []
        while pending:
            chunk = pending.pop(0)
            trial = keep.clone()
            trial[chunk] = False
            try:
                keep = groups.close(trial)
            except PlanError:
                if len(chunk) > 1:
                    pending[:0] = [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
        return cls(groups, keep)

    @classmethod
    def from_kept(cls, groups: Groups, kept: Mapping[str, Sequence[int]]) -> KeepPlan:
        """The plan that :meth:`kept` describes; a group that is not named stays whole.

        Raises:
            PlanError: a group or a position in it does not exist, or a layer would be left empty.
        """
        keep = torch.ones(groups.num_moves, dtype=torch.bool)
        by_name = {group_key(group.name, group.kind): group for group in groups.groups}
        for name, positions in kept.items():
            if name not in by_name:
                raise PlanError(f"there is no group {name!r}.", fix=f"The groups are {', '.join(sorted(by_name))}.")
            moves = by_name[name].moves
            wrong = [position for position in positions if not 0 <= position < len(moves)]
            if wrong:
                raise PlanError(
                    f"group {name!r} has {len(moves)} moves, so it cannot keep number {wrong[0]}.",
                    fix="Count them from 0.",
                )
            keep[list(moves)] = False
            keep[[moves[position] for position in positions]] = True
        return cls.from_keep(groups, keep)

    def kept(self) -> dict[str, list[int]]:
        """For every group, the positions of the moves that stay."""
        return {
            group_key(group.name, group.kind): [i for i, move in enumerate(group.moves) if self.keep[move]]
            for group in self.groups.groups
        }

    @cached_property
    def alive(self) -> Tensor:
        """bool (components,): what is left of the graph."""
        return self.groups.alive_components(self.keep)

    @cached_property
    def cost(self) -> Cost:
        """The exact cost of the model that this plan leaves."""
        return self.groups.cost_of_components(self.alive)

    def __repr__(self) -> str:
        whole, kept = self.groups.cost_of_components(torch.ones_like(self.alive)), self.cost
        title = (
            f"KeepPlan(keeps {int(self.keep.sum()):,} of {counted(self.groups.num_moves, 'move')}: {kept.params:,} of "
            f"{whole.params:,} parameters, {kept.macs:,} of {whole.macs:,} MACs)"
        )
        lines = [
            f"{name}: {len(kept):,} of {len(group.moves):,}"
            for (name, kept), group in zip(self.kept().items(), self.groups.groups, strict=True)
        ]
        lines += [f"{name}: {int(mask.sum()):,} of {mask.numel():,} elements" for name, mask in self.masks.items()]
        return headed(title, lines)

    def decision(self) -> KeepPlan:
        """The bare decision, which may be carried out on any weights of the graph, those from before training too."""
        return replace(self, unfit={})

    def check_fits(self, graph: CapturedGraph) -> None:
        """Raises:
        PlanError: ``graph`` has other nodes or shapes than the one that the plan was made of, or weights in ``unfit``.
        """
        wanted = {name: tuple(value.shape) for name, value in self.groups.labelled.parameters.items()}
        if [node.name for node in graph.nodes()] != [node.name for node in self.groups.graph.nodes()]:
            raise PlanError("the plan was made for another graph.", fix="Make it with find_groups(graph).")
        state = graph.state()
        for name, shape in wanted.items():
            if name in state and tuple(state[name].shape) != shape:
                raise PlanError(
                    f"the plan was made for a graph whose {name!r} has shape {shape}, and here it has "
                    f"{tuple(state[name].shape)}.",
                    fix=(
                        "If this graph is the result of the plan, there is nothing left to do; otherwise make a plan "
                        "with find_groups(graph)."
                    ),
                )
        what = self.unfit.get(weights_checksum(state)) if self.unfit else None
        if what is not None:
            raise PlanError(
                f"the plan was made by training, but the graph has {what}.",
                fix=(
                    "Write gated.shrink(plan), or take the graph from fold(gated, plan); to apply the bare decision "
                    "to these weights pass plan.decision()."
                ),
            )

    def with_masks(self, masks: Mapping[str, Tensor]) -> KeepPlan:
        """The same moves, and ``masks`` for single weights.

        Raises:
            PlanError: a mask is not bool, or not of the shape of the parameter that it names.
        """
        shapes = {name: tuple(value.shape) for name, value in self.groups.labelled.parameters.items()}
        for name, mask in masks.items():
            if mask.dtype != torch.bool or tuple(mask.shape) != shapes.get(name):
                raise PlanError(
                    f"a mask for {name!r} must be bool of shape {shapes.get(name)}, but it is {mask.dtype} of shape "
                    f"{tuple(mask.shape)}.",
                    fix="",
                )
        return replace(self, masks={name: mask.cpu() for name, mask in masks.items()})

    def tensors(self) -> dict[str, Tensor]:
        """The whole decision as named tensors, for a file; :meth:`from_tensors` takes them back."""
        return {_KEEP: self.keep, **{f"{_MASK}{name}": mask for name, mask in self.masks.items()}}

    @classmethod
    def from_tensors(cls, groups: Groups, tensors: Mapping[str, Tensor]) -> KeepPlan:
        """The plan that :meth:`tensors` was called on; tensors of other names are passed over."""
        masks = {name.removeprefix(_MASK): mask for name, mask in tensors.items() if name.startswith(_MASK)}
        return cls(groups, tensors[_KEEP]).with_masks(masks)

    def small_masks(self) -> dict[str, Tensor]:
        """The masks of what is left, in the small model's shapes; of parameters that vanish with the rest too."""
        keeps = self.parameter_keeps()
        return {name: cut(mask, keeps[name]) for name, mask in self.masks.items()}

    def parameter_keeps(self) -> dict[str, Keeps]:
        """For every parameter and buffer, per dimension: sorted kept indices, None where it stays whole."""
        result: dict[str, Keeps] = {}
        for name, value in self.groups.labelled.parameters.items():
            keeps: list[Tensor | None] = [None] * len(value.shape)
            for plane in value.planes:
                (dim,) = varying(plane)
                mask = self.alive[torch.from_numpy(self.groups.components.of(flattened(plane))).long()]
                keeps[dim] = None if bool(mask.all()) else mask.nonzero().flatten()
            result[name] = tuple(keeps)
        return result


def group_key(name: str, kind: str) -> str:
    """How a group is called in plans and reports."""
    return f"{name} {kind}"


def cut(tensor: Tensor, keeps: Keeps) -> Tensor:
    """A tensor with only the kept indices of each dimension.

    Examples:
        >>> cut(torch.arange(6).view(2, 3), (None, torch.tensor([0, 2])))
        tensor([[0, 2],
                [3, 5]])
    """
    for dim, keep in enumerate(keeps):
        if keep is not None:
            tensor = tensor.index_select(dim, keep.to(tensor.device))
    return tensor


def unshrink_state(plan: KeepPlan, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A small model's state scattered back into the dense shapes; dead places keep the dense values.

    ``masked(graph.with_state(unshrink_state(plan, state)), plan)`` is the dense-shaped proof of what was trained.
    """
    dense = {name: tensor.clone() for name, tensor in plan.groups.graph.state().items()}
    for name, keeps in plan.parameter_keeps().items():
        if name not in state:
            continue
        whole = dense[name]
        index = [torch.arange(size) if keep is None else keep for size, keep in zip(whole.shape, keeps, strict=True)]
        whole[torch.meshgrid(*index, indexing="ij") if index else ()] = state[name].detach().to(whole)
    return dense
