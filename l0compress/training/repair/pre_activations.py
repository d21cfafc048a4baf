"""Recurrent layers solved anew: what each gate adds up, before its nonlinearity, is linear in the weights.

The pre-activations of every step are fitted, from the input as the small network has it and from the units that are
left of the dense network's state. A repaired layer's own state comes close to that one. Where it does not, so that the
outputs are no closer on samples that the layer was not solved on, it keeps its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.devices import widest_float
from l0compress.graph.cut.plan import KeepPlan, cut
from l0compress.graph.nodes.network import attribute, op_name
from l0compress.graph.nodes.recurrence import NUM_GATES, directions, is_recurrent
from l0compress.training.repair.forms import Product
from l0compress.training.repair.least_squares import Sums, best_step
from l0compress.training.repair.lockstep import Lockstep
from l0compress.training.repair.rows import Rows

# Rows of steps, whatever the layer does with them.
_FORM = Product(outputs_first=True)
_X, _PARAMS, _HAS_BIASES, _NUM_LAYERS, _BIDIRECTIONAL, _BATCH_FIRST = 0, 2, 3, 4, 7, 8


@dataclass(frozen=True)
class _Part:
    """Gates that are solved together, first to last, and what they read."""

    first: int
    last: int
    reads_input: bool = True
    reads_state: bool = True


# The new gate of a GRU adds what it reads of the state behind a product, so that both are sums of their own.
_WHOLE = {name: (_Part(0, gates),) for name, gates in NUM_GATES.items()}
_PARTS = {**_WHOLE, "gru": (_Part(0, 2), _Part(2, 3, reads_state=False), _Part(2, 3, reads_input=False))}


@dataclass(frozen=True, eq=False)
class Side:
    """One direction of a recurrent layer: the names of its parameters and what is left of them.

    Attributes:
        rows: of the gates in the dense weights, those that are left; None where all are.
        units: of what the layer hands on in the dense network, what is left; None where all is.
    """

    weight_ih: str
    weight_hh: str
    biases: tuple[str, ...]
    rows: Tensor | None
    units: Tensor | None


@dataclass(frozen=True, eq=False)
class RecurrentTask:
    """A recurrent layer to solve: the node in the small network, and the one that it was in the dense one."""

    node: fx.Node
    twin: fx.Node
    sides: tuple[Side, ...]

    @property
    def name(self) -> str:
        """The layer's name, by its first weight."""
        return self.sides[0].weight_ih.replace("weight_ih_", "")

    def taken(self) -> list[fx.Node]:
        """The nodes of the dense network whose values are asked for."""
        x, states, *_ = self.twin.args
        first: Any = states[0] if isinstance(states, list | tuple) else states
        source: Any = x
        return [source, first, self.twin]

    def steps_first(self, x: Tensor) -> Tensor:
        """``(samples, steps, features)`` whatever the layer has first."""
        return x if self.node.args[_BATCH_FIRST] else x.transpose(0, 1)


def recurrent_task(
    node: fx.Node, twin: fx.Node | None, own: Callable[[fx.Node], str | None], plan: KeepPlan
) -> RecurrentTask | None:
    """The task that a node is; None where it is no single recurrent layer with parameters of its own.

    Args:
        twin: the node of the dense network that it was.
        own: the name of a parameter that nothing else reads, by the node that stands for it.
    """
    if twin is None or not is_recurrent(node) or node.args[_NUM_LAYERS] != 1:
        return None
    params: Any = node.args[_PARAMS]
    names = [name for param in params if (name := own(param)) is not None]
    if len(names) != len(params):
        return None
    keeps = plan.parameter_keeps()
    found = directions(
        len(names),
        has_biases=bool(node.args[_HAS_BIASES]),
        num_layers=1,
        bidirectional=bool(node.args[_BIDIRECTIONAL]),
    )
    sides = []
    for place in found:
        rows, units = keeps.get(names[place.weight_hh], (None, None))
        biases = tuple(names[position] for position in place.biases)
        sides.append(Side(names[place.weight_ih], names[place.weight_hh], biases, rows, units))
    return RecurrentTask(node, twin, tuple(sides))


@dataclass(frozen=True, eq=False)
class Samples:
    """What both networks have at the layer, batch by batch.

    Attributes:
        inputs: of the small network, ``(samples, steps, features)``.
        wanted_inputs: of the dense network.
        states: what the dense layer hands on before the first step, ``(sides, samples, units)``.
        outputs: what it returns, ``(samples, steps, sides * units)``.
        rows: which samples and steps count.
        num_train: how many batches are solved on; the others are held out.
    """

    inputs: Sequence[Tensor]
    wanted_inputs: Sequence[Tensor]
    states: Sequence[Tensor]
    outputs: Sequence[Tensor]
    rows: Sequence[Rows]
    num_train: int

    @classmethod
    def of(cls, task: RecurrentTask, here: Lockstep, there: Lockstep, rows: Sequence[Rows], num_train: int) -> Samples:
        """Run both networks as far as the layer, the dense one through it."""
        here.before_(task.node)
        there.through_(task.twin)
        wanted, states, results = (there.take_(node) for node in task.taken())
        return cls(
            [task.steps_first(x) for x in here.values(task.node.args[_X])],
            [task.steps_first(x) for x in wanted],
            states,
            [task.steps_first(result[0]) for result in results],
            rows,
            num_train,
        )


@dataclass(frozen=True)
class Limits:
    """How many rows are solved on and checked on, and the penalties to choose from."""

    train_rows: int
    held_out_rows: int
    penalties: tuple[float, ...]


def solve_recurrent_(
    task: RecurrentTask,
    networks: tuple[fx.GraphModule, fx.GraphModule],
    here: Lockstep,
    samples: Samples,
    limits: Limits,
) -> tuple[float, float]:
    """Solve a layer of the small network anew; it keeps its weights where its outputs come no closer.

    Returns:
        The squared error of its outputs on held-out samples before and after, over the squares of what they should be.
    """
    small, dense = networks
    names = [name for side in task.sides for name in (side.weight_ih, side.weight_hh, *side.biases)]
    old = {name: attribute(small, name).detach().clone() for name in names}
    before = _missing(task, here, samples)
    for number, side in enumerate(task.sides):
        for part in _PARTS[op_name(task.node)]:
            _Problem(side, number, part, NUM_GATES[op_name(task.node)]).solve_(small, dense, samples, limits)
    after = _missing(task, here, samples)
    if after < before:
        return before, after
    for name, weight in old.items():
        attribute(small, name).copy_(weight)
    return before, before


def _missing(task: RecurrentTask, here: Lockstep, samples: Samples) -> float:
    """The squared error of the layer's outputs on held-out samples, over the squares of what they should be."""
    error = squares = 0.0
    source: Any = task.node.args[_X]
    for number in range(samples.num_train, len(samples.inputs)):
        result = here.follow([task.node], source, here.value(source, number), number)
        found = task.steps_first(result[0])
        whole = zip(samples.outputs[number].chunk(len(task.sides), 2), task.sides, strict=True)
        wanted = torch.cat([cut(one, (None, None, side.units)) for one, side in whole], 2)
        chosen = samples.rows[number].chosen(found.shape[:2], found.numel(), found.device)
        pair = [_FORM.outputs(x, chosen).to(widest_float(x.device)) for x in (found, wanted)]
        error += float((pair[0] - pair[1]).square().sum())
        squares += float(pair[1].square().sum())
    return error / squares if squares else 0.0


@dataclass(frozen=True, eq=False)
class _Problem:
    """One least-squares problem: some gates of one direction, out of ``num_gates``."""

    side: Side
    number: int
    part: _Part
    num_gates: int

    def solve_(self, small: fx.GraphModule, dense: fx.GraphModule, samples: Samples, limits: Limits) -> None:
        now, then = self._matrix(small, None), self._matrix(dense, self.side.rows)
        train, held = Sums(), Sums()
        num_held = len(samples.inputs) - samples.num_train
        for number in range(len(samples.inputs)):
            trained = number < samples.num_train
            most = limits.train_rows / samples.num_train if trained else limits.held_out_rows / num_held
            inputs, wanted = self._rows(samples, number, math.ceil(most))
            residuals = wanted.to(then.dtype) @ then - inputs.to(now.dtype) @ now
            (train if trained else held).add_(inputs.to(now.dtype), residuals)
        found = best_step(train, held, limits.penalties, free=int(bool(self._biases())))
        self._move_(small, found.step[0])

    def _rows(self, samples: Samples, number: int, most: int) -> tuple[Tensor, Tensor]:
        """What the gates read in the small network, by the dense one's state, and in the dense one."""
        x, wanted_x = samples.inputs[number], samples.wanted_inputs[number]
        state = self._states(samples, number)
        ones = x.new_ones(*x.shape[:2], int(bool(self._biases())))
        chosen = samples.rows[number].chosen(x.shape[:2], most, x.device)
        read = self.part.reads_input, self.part.reads_state
        both = (x, cut(state, (None, None, self.side.units))), (wanted_x, state)
        here, there = (
            torch.cat([*(p for p, wanted in zip(pair, read, strict=True) if wanted), ones], 2) for pair in both
        )
        return _FORM.outputs(here, chosen), _FORM.outputs(there, chosen)

    def _states(self, samples: Samples, number: int) -> Tensor:
        """What the dense layer handed on before each step, ``(samples, steps, units)``."""
        initial = samples.states[number][self.number].unsqueeze(1)
        outputs = samples.outputs[number].unflatten(2, (-1, initial.shape[2]))[:, :, self.number]
        return torch.cat([outputs[:, 1:], initial], 1) if self.number else torch.cat([initial, outputs[:, :-1]], 1)

    def _names(self) -> list[str]:
        """The weights that the part solves, in the order of what it reads."""
        read = (self.side.weight_ih, self.part.reads_input), (self.side.weight_hh, self.part.reads_state)
        return [name for name, wanted in read if wanted]

    def _biases(self) -> list[str]:
        read = self.part.reads_input, self.part.reads_state
        return [name for name, wanted in zip(self.side.biases, read, strict=False) if wanted]

    def _gates(self, num_rows: int) -> slice:
        """The rows of the part's gates."""
        width = num_rows // self.num_gates
        return slice(self.part.first * width, self.part.last * width)

    def _matrix(self, network: fx.GraphModule, rows: Tensor | None) -> Tensor:
        """``(unknowns, outputs)``: the part's weights, and the sum of its biases; of some rows of the network's."""

        def own(name: str) -> Tensor:
            tensor = attribute(network, name).detach()
            left = tensor if rows is None else tensor[rows.to(tensor.device)]
            return left[self._gates(len(left))].to(widest_float(left.device))

        biases = [own(name) for name in self._biases()]
        summed = [torch.stack(biases).sum(0, keepdim=True)] if biases else []
        return torch.cat([*(own(name).mT for name in self._names()), *summed])

    def _move_(self, network: fx.GraphModule, step: Tensor) -> None:
        """Add a step to the weights, and to the first of the biases what belongs to their sum."""
        names = self._names()
        sizes = [attribute(network, name).shape[1] for name in names]
        first_bias = self._biases()[:1]
        parts = step.split([*sizes, *(1 for _ in first_bias)])
        for name, part in zip([*names, *first_bias], parts, strict=True):
            tensor = attribute(network, name)
            gates = tensor[self._gates(len(tensor))]
            gates.add_((part[0] if name in first_bias else part.mT).to(tensor.dtype))
