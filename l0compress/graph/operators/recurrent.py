"""Recurrent layers: the hidden units of a layer are channels.

Unit ``j`` owns row ``j`` of every gate's block of rows. It is read by column ``j`` of the recurrent weight, by the
projection if there is one, and by whatever follows; where none of them reads it, what becomes of its state is nobody's
concern. Both directions of a layer are one operator of one width, so their units go in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.labels.space import ReadFact
from l0compress.graph.labels.values import Value, along, core, flattened, varying
from l0compress.graph.nodes.recurrence import NUM_GATES, PARAMS, Direction, directions, is_recurrent
from l0compress.graph.nodes.shapes import node_shape
from l0compress.graph.operators.record import Operator, Result, register
from l0compress.graph.operators.step import Step


@dataclass(frozen=True, eq=False)
class Units:
    """Labels of one direction: its hidden units, and what of them is handed on (projections, if there are any)."""

    hidden: Tensor
    handed_on: Tensor


def recurrent(step: Step) -> Result:
    if not _supported(step):
        return step.frozen("only single layers over padded sequences have a rule")
    params: list[Value] = step.args[PARAMS]
    places = directions(len(params), has_biases=step.args[3], num_layers=1, bidirectional=step.args[7])
    channels = _channels(step, step.args[0])
    units = [_direction(step, place, channels) for place in places]
    for other in units[1:]:
        step.space.unite_(units[0].hidden, other.hidden)
        step.space.unite_(units[0].handed_on, other.handed_on)
    first = units[0]
    states = step.args[1] if step.name == "lstm" else [step.args[1]]
    for number, (state, labels) in enumerate(zip(states, (first.handed_on, first.hidden), strict=False)):
        _initial_state(step, state, labels, number)
    outputs = torch.cat([side.handed_on for side in units])
    finals = (first.handed_on, first.hidden)[: len(step.shapes) - 1]
    lines = (outputs, *finals)
    return tuple(
        Value(shape, (along(labels, 2, shape),) if len(labels) > 1 else ())
        for shape, labels in zip(step.shapes, lines, strict=True)
    )


def _supported(step: Step) -> bool:
    return str(step.node.target).endswith(".input") and step.args[4] == 1


def _channels(step: Step, x: Value) -> Tensor | None:
    """One label a feature of the input; steps and samples are no channels."""
    found = x.plane_along(2)
    for plane in x.planes:
        if plane is not found:
            step.space.freeze_(plane, step.node, "a recurrent layer runs along it")
    if found is None:
        return None
    labels = core(found).movedim(2, 0).reshape(x.shape[2], -1)
    if labels.shape[1] > 1:
        step.space.unite_(labels, labels[:, :1])
    return labels[:, 0]


def _direction(step: Step, place: Direction, channels: Tensor | None) -> Units:
    """Relate the rows and columns of one direction's weights, and record who reads what."""
    params = step.args[PARAMS]
    hidden = _units_of_rows(step, place)
    handed_on = hidden
    if place.weight_hr is not None:
        handed_on = _line(step, params[place.weight_hr], 0)
        _read(step, place.weight_hr, hidden)
        # PyTorch tells by the widths of the two states whether there is a projection, so they must never become equal.
        step.space.freeze_(hidden[: len(handed_on) + 1], step.node, "a projection needs more hidden units than outputs")
    _read(step, place.weight_hh, handed_on)
    inputs = _line(step, params[place.weight_ih], 1)
    if channels is None:
        source = "the model's input" if step.reads_input(step.node.args[0]) else "an input without channels"
        step.space.freeze_(inputs, step.node, f"it reads {source}")
    else:
        _read(step, place.weight_ih, channels)
    _record_macs(step, (inputs, hidden), hidden)
    _record_macs(step, (handed_on, hidden), hidden)
    if place.weight_hr is not None:
        _record_macs(step, (handed_on, hidden), None)
    return Units(hidden, handed_on)


def _units_of_rows(step: Step, place: Direction) -> Tensor:
    """The labels of the first gate's rows, which those of all other gates' follow."""
    params = step.args[PARAMS]
    blocks = [
        _line(step, params[position], 0).view(NUM_GATES[step.name], -1)
        for position in (place.weight_ih, place.weight_hh, *place.biases)
    ]
    units = blocks[0][0]
    for block in blocks:
        step.space.unite_(block, units.expand_as(block))
    return units


def _line(step: Step, value: Value, dim: int) -> Tensor:
    """The labels of a parameter along one dimension; what is computed otherwise than by rows and columns freezes."""
    plane = value.plane_along(dim)
    if plane is not None and varying(plane) == {dim}:
        return flattened(plane)
    if plane is not None:
        step.space.freeze_(plane, step.node, "it is not arranged in rows and columns")
    stuck = step.space.fresh(value.shape[dim])
    if len(stuck) > 1:
        step.space.freeze_(stuck, step.node, "the weight it belongs to stays whole")
    return stuck


def _read(step: Step, position: int, labels: Tensor) -> None:
    """The columns of a weight read ``labels``."""
    weight = step.args[PARAMS][position]
    step.space.unite_(_line(step, weight, 1), labels)
    step.space.reads.append(ReadFact(step.node, (PARAMS, position), along(labels, 1, weight.shape), None))


def _initial_state(step: Step, state: Value, labels: Tensor, number: int) -> None:
    """The state that a sequence starts from has the width of the units."""
    own = state.plane_along(2)
    for plane in state.planes:
        if plane is not own:
            step.space.freeze_(plane, step.node, "a recurrent layer starts from it")
    if own is None or varying(own) != {2}:
        if own is not None:
            step.space.freeze_(own, step.node, "a recurrent layer starts from it")
        step.space.freeze_(labels, step.node, f"its initial {('hidden', 'cell')[number]} state stays whole")
    else:
        step.space.unite_(flattened(own), labels)


def _record_macs(step: Step, lines: tuple[Tensor, Tensor], gated: Tensor | None) -> None:
    """One product a position of the input, for every gate where ``gated``."""
    positions = step.shape[0] * step.shape[1]
    gates = 1 if gated is None else NUM_GATES[step.name]
    step.record_macs(positions * gates * lines[0].numel() * lines[1].numel(), lines)


def recurrent_macs(node: fx.Node) -> int:
    """Every weight meets every position of the input once. Of packed sequences nobody knows the positions."""
    if not is_recurrent(node):
        return 0
    weights: Any = node.args[PARAMS]
    matrices = [shape for weight in weights if len(shape := node_shape(weight)) == 2]
    return prod(node_shape(node.args[0])[:2]) * sum(prod(shape) for shape in matrices)


register(Operator(label=recurrent, macs=recurrent_macs), *NUM_GATES)
