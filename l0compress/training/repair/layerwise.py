"""Repair: the layers of a shrunk network are solved anew, first to last, to return what they return in the dense one.

requires: a dense graph, a plan on its groups, what :func:`~l0compress.graph.cut.shrink.shrink` left of it (with any
          weights), and batches of inputs; no labels.
ensures:  a graph with the same nodes and shapes, whose weights differ only in layers that come closer to the dense
          activations on samples that they were not solved on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from l0compress.data import Batch
from l0compress.devices import widest_float
from l0compress.errors import DataError
from l0compress.graph.capture import CapturedGraph, check_captured
from l0compress.graph.cut.plan import KeepPlan, cut
from l0compress.graph.nodes.network import GraphNetwork, attribute
from l0compress.training.randomness import seeded
from l0compress.training.repair.contractions import values_of
from l0compress.training.repair.forms import Form
from l0compress.training.repair.least_squares import Sums, best_step, work_of
from l0compress.training.repair.lockstep import Lockstep, live_bytes
from l0compress.training.repair.padding import counting
from l0compress.training.repair.pre_activations import Limits, RecurrentTask, Samples, solve_recurrent_
from l0compress.training.repair.rows import Rows
from l0compress.training.repair.tasks import Task, Tasks, check_small

# Penalties to choose from, in units of the mean square of a layer's inputs. The least is there for layers that can be
# solved exactly.
PENALTIES = (1e-9, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Rows that a layer is solved on, of all samples and positions: so many, or so many for each unknown; and checked on.
MIN_ROWS, ROWS_PER_UNKNOWN, HELD_OUT_ROWS = 16_384, 4, 4_096
# Of more unknowns the products are taken in the network's own precision, and summed in the widest one alone.
MANY_UNKNOWNS = 1_024
# Activations of both networks that are held at a time; where samples need more, fewer are taken.
MOST_BYTES = 2**30
# Multiply-accumulates of one solution of a layer with zeros, whose outputs have a matrix each: some seconds of a core.
MOST_WORK = 3e10
_HELD_OUT_EVERY = 4
# A layer that misses less than so many roundings misses nothing.
_ROUNDINGS = 8


@dataclass(frozen=True)
class RepairedLayer:
    """What became of a layer.

    Attributes:
        name: the name of its weight, without ``.weight``.
        before: squared error of its output on held-out samples, over the squares of what it should be.
        after: the same with the weights that it has now; never above ``before``.
        repaired: whether it has new weights.
    """

    name: str
    before: float
    after: float
    repaired: bool


@dataclass(frozen=True, eq=False)
class Repaired:
    """A repaired graph, and what became of each layer that could be solved, in the order of the graph."""

    graph: CapturedGraph
    layers: tuple[RepairedLayer, ...]


def repair(
    small: CapturedGraph,
    dense: CapturedGraph,
    plan: KeepPlan,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch] = (),
    device: str = "cpu",
) -> Repaired:
    """Solve every layer of a shrunk network anew, so that it returns what it returned in the dense one.

    Layer after layer, in the order of the graph, by ridge least squares: from its input in the small network, as far
    as that is repaired by then, to its output in the dense network. A layer that writes to a sum also makes up for what
    the other summand lacks. Linear layers, products with a matrix, convolutions and recurrent layers are solved; what
    several layers share, embeddings and norms stay. Single weights that the plan drops stay zero; a recurrent layer
    with such zeros stays, and so does a layer whose solution with them would take too long. Padding that an input masks
    out does not count.

    Args:
        small: what ``shrink`` returned for ``plan``, on the weights of ``dense`` or on others.
        dense: the network to come close to; a graph that ``plan`` fits.
        batches: inputs; targets are not looked at.
        held_out: inputs that layers are not solved on: they choose the penalty of each, and whether it gets new weights
            at all. Without them every fourth of ``batches`` serves.

    Raises:
        InputError: ``small`` or ``dense`` is no captured graph.
        PlanError: ``plan`` belongs to another graph than ``dense``, or ``small`` is not what it leaves.
        DataError: there are no batches to solve on, or none held out.

    Source: the reconstruction of feature maps of He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural
    Networks", 2017, section 3.1, with a penalty on the distance from the weights that there are. Recurrent layers:
    :mod:`l0compress.training.repair.pre_activations`.

    Examples:
        >>> from l0compress.graph import capture, find_groups, shrink
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> graph = capture(net, (torch.zeros(2, 4),))
        >>> plan = KeepPlan.from_kept(find_groups(graph), {"0 channels": [0, 1, 2, 3, 4, 5]})
        >>> repaired = repair(shrink(graph, plan), graph, plan, [Batch((torch.randn(32, 4),), {}) for _ in range(4)])
        >>> [layer.name for layer in repaired.layers if layer.after < layer.before]
        ['2']
    """
    check_captured(small, "repair")
    check_captured(dense, "repair")
    plan.decision().check_fits(dense)
    check_small(small, plan)
    train, held = _split(batches, held_out)
    with seeded(0, device), torch.no_grad():
        networks = small.module().to(device), dense.module().to(device)
        train, held = _bounded([b.to(device) for b in train], [b.to(device) for b in held], networks[1])
        walk = _Walk(networks, plan, train, held, device)
        layers = walk.run_()
        state = {name: tensor.cpu() for name, tensor in networks[0].state_dict().items()}
    return Repaired(small.with_state(state), tuple(layers))


def _split(batches: Sequence[Batch], held_out: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    every = min(_HELD_OUT_EVERY, max(len(batches), 1))
    train = [batch for number, batch in enumerate(batches) if held_out or number % every != every - 1]
    held = list(held_out) or list(batches[every - 1 :: every])
    if not train or not held:
        raise DataError(
            f"repair got {len(batches)} batch{'' if len(batches) == 1 else 'es'}, but needs some to solve layers on "
            "and others to check them on.",
            fix="Give two or more, or some as held_out.",
        )
    return train, held


def _bounded(train: list[Batch], held: list[Batch], dense: GraphNetwork) -> tuple[list[Batch], list[Batch]]:
    """As many of the batches as there is memory for."""
    fit = max(MOST_BYTES // max(2 * live_bytes(dense, train[0]), 1), 2)
    if len(train) + len(held) <= fit:
        return train, held
    num_held = min(max(fit // _HELD_OUT_EVERY, 1), len(held))
    return train[: fit - num_held], held[:num_held]


class _Walk:
    """One walk through both networks."""

    def __init__(
        self,
        networks: tuple[GraphNetwork, GraphNetwork],
        plan: KeepPlan,
        train: list[Batch],
        held: list[Batch],
        device: str,
    ) -> None:
        small, dense = networks
        batches = [*train, *held]
        self.small, self.dense, self.num_train = small, dense, len(train)
        self.tasks = Tasks(small, dense, plan)
        self.here, self.there = Lockstep(small, batches), Lockstep(dense, batches, self.tasks.taken())
        self.masks = counting(dense, batches)
        self.device, self.dtype = device, widest_float(device)
        self.grams = _Grams()
        # Where the next layer begins to look for its penalty.
        self.penalty = len(PENALTIES) // 2

    def run_(self) -> list[RepairedLayer]:
        """Repair the small network."""
        layers: list[RepairedLayer] = []
        for node in self.small.graph.nodes:
            task = self.tasks.by_node.get(node)
            if task is not None:
                self.here.before_(node)
                if (solved := self._solve_(task)) is not None:
                    layers.append(solved)
            if node in self.tasks.recurrent:
                layers.append(self._solve_recurrent_(self.tasks.recurrent[node]))
            self.here.through_(node)
        return layers

    def _solve_recurrent_(self, task: RecurrentTask) -> RepairedLayer:
        rows = [Rows(mask, number) for number, mask in enumerate(self.masks)]
        samples = Samples.of(task, self.here, self.there, rows, self.num_train)
        limits = Limits(MIN_ROWS, HELD_OUT_ROWS, PENALTIES)
        before, after = solve_recurrent_(task, (self.small, self.dense), self.here, samples, limits)
        return RepairedLayer(task.name, before, after, repaired=after < before)

    def _support(self, task: Task, *, with_bias: bool) -> Tensor | None:
        """What may differ from zero, as the unknowns are laid out; None where all of it may."""
        if task.mask is None:
            return None
        support = task.layer.form.matrices(task.mask).to(self.device)
        return F.pad(support, (0, 0, 0, int(with_bias)), value=True)

    def _solve_(self, task: Task) -> RepairedLayer | None:
        layer = task.layer
        weight, bias = values_of(self.small, layer)
        matrices = layer.form.matrices(weight).to(self.dtype)
        if bias is not None:
            matrices = torch.cat([matrices, layer.form.bias(bias).to(self.dtype)], 1)
        support = self._support(task, with_bias=bias is not None)
        if support is not None and work_of(support) > MOST_WORK:
            return None
        train, held, squares = self._sums(task, matrices, with_bias=bias is not None)
        solution = best_step(train, held, PENALTIES, free=int(bias is not None), start=self.penalty, support=support)
        self.penalty = solution.penalty
        before, after = (error / squares if squares else 0.0 for error in (solution.before, solution.after))
        least = (_ROUNDINGS * torch.finfo(weight.dtype).eps) ** 2
        if before <= least or after >= before:
            return RepairedLayer(layer.name, before, before, repaired=False)
        matrices = matrices + solution.step
        if bias is not None and layer.bias is not None:
            attribute(self.small, layer.bias).copy_(matrices[:, -1].reshape(bias.shape))
            matrices = matrices[:, :-1]
        attribute(self.small, layer.weight).copy_(layer.form.weight(matrices, weight.shape))
        return RepairedLayer(layer.name, before, after, repaired=True)

    def _sums(self, task: Task, matrices: Tensor, *, with_bias: bool) -> tuple[Sums, Sums, float]:
        """All rows, those to solve on and those held out, and the squares of what the latter should return."""
        form, source = task.layer.form, task.layer.source
        train, held, squares = Sums(), Sums(), 0.0
        unknowns, values = matrices.shape[1], self.here.values(source)
        num_held = len(values) - self.num_train
        rows = max(MIN_ROWS, ROWS_PER_UNKNOWN * unknowns) / self.num_train, HELD_OUT_ROWS / num_held
        narrow = torch.promote_types(values[0].dtype, torch.float32)
        wide = self.dtype if unknowns <= MANY_UNKNOWNS else narrow
        matrices = matrices.to(narrow)
        known = self.grams.of(source, form, with_bias=with_bias)
        for number, (x, wanted) in enumerate(zip(values, self._wanted(task), strict=True)):
            sums, most = (train, rows[0]) if number < self.num_train else (held, rows[1])
            shape = form.row_shape(wanted.shape)
            chosen = Rows(self.masks[number], number).chosen(shape, math.ceil(most), x.device)
            inputs, outputs = form.inputs(x, shape, chosen).to(narrow), form.outputs(wanted, chosen).to(narrow)
            if with_bias:
                inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], 2)
            residuals = outputs - inputs @ matrices
            sums.add_(inputs.to(wide), residuals.to(wide), gram=known is None)
            if sums is held:
                squares += float(outputs.to(self.dtype).square().sum())
        if known is None:
            self.grams.note_(source, form, (train, held), with_bias=with_bias)
        else:
            train.gram, held.gram = known
        return train, held, squares

    def _wanted(self, task: Task) -> Iterator[Tensor]:
        """What a layer should return, batch after batch."""
        self.there.through_(task.twin)
        twins = (cut(twin, task.keeps) for twin in self.there.take_(task.twin))
        beside = task.beside
        if beside is None:
            yield from twins
            return
        self.there.through_(beside.there)
        for number, (wanted, other) in enumerate(zip(twins, self.there.take_(beside.there), strict=True)):
            yield wanted + beside.lacking(self.here, number, wanted, other)


class _Grams:
    """The products of the inputs of the layer that was solved last: layers that read the same tensor share them."""

    def __init__(self) -> None:
        self._key: tuple[fx.Node, Form, bool] | None = None
        self._grams: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)

    def of(self, source: fx.Node, form: Form, *, with_bias: bool) -> tuple[Tensor | float, Tensor | float] | None:
        return self._grams if self._key == (source, form, with_bias) else None

    def note_(self, source: fx.Node, form: Form, sums: tuple[Sums, Sums], *, with_bias: bool) -> None:
        self._key, self._grams = (source, form, with_bias), (sums[0].gram, sums[1].gram)
