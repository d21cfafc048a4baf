"""Normalisations: those by channel pass channels on, those over channels read them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from l0compress.graph.rules.reading import read_over
from l0compress.graph.rules.registry import Result, Step, rule
from l0compress.graph.values import Value, along, core, flattened


def channel_vector(step: Step, value: Value, vector: Value | None, dim: int) -> Value:
    """Merge a per-channel vector (a bias, a running mean) into ``value`` along ``dim``."""
    if vector is None:
        return value
    shape = tuple(size if d == dim else 1 for d, size in enumerate(value.shape))
    planes = tuple(along(flattened(plane), dim, shape) for plane in vector.planes)
    return step.space.merge([value, Value(shape, planes)], value.shape, step.node)


def channels_along(step: Step, value: Value, dim: int, reason: str) -> Tensor | None:
    """One label a channel; a channel whose label varies over positions is alive as one. All else is frozen."""
    found = value.plane_along(dim)
    for plane in value.planes:
        if plane is not found:
            step.space.freeze_(plane, step.node, reason)
    if found is None:
        return None
    table = core(found).movedim(dim, 0).reshape(value.shape[dim], -1)
    if table.shape[1] > 1:
        step.space.unite_(table, table[:, :1])
    return table[:, 0]


@rule("batch_norm", "instance_norm")
def batch_norm(step: Step) -> Result:
    value = step.args[0]
    if step.name == "instance_norm":
        positions = frozenset(range(2, len(value.shape)))
        value = Value(value.shape, step.passed(value, positions, "instance_norm is taken over it"))
    for vector in step.args[1:5]:
        value = channel_vector(step, value, vector, 1)
    return value


@rule("_native_batch_norm_legit_no_training", "native_batch_norm", "_native_batch_norm_legit")
def native_batch_norm(step: Step) -> Result:
    value = step.args[0]
    for vector in step.args[1:5]:
        if isinstance(vector, Value):
            value = channel_vector(step, value, vector, 1)
    return (value, *(Value(shape) for shape in step.shapes[1:]))


@rule("rms_norm")
def rms_norm(step: Step) -> Result:
    """A mean of squares does not see zeros, so channels are read, and surgery keeps the dense count."""
    result = _read(step, len(step.shape) - len(step.args[1]))
    return with_vectors(step, result, [step.get(2, "weight")])


@rule("layer_norm", "native_layer_norm")
def layer_norm(step: Step) -> Result:
    """The statistics run over the last dimensions; surgery fills up what it cuts there with zeros."""
    result = _read(step, len(step.shape) - len(step.args[1]))
    result = with_vectors(step, result, [step.get(2, "weight"), step.get(3, "bias")])
    return (result, *(Value(shape) for shape in step.shapes[1:])) if len(step.shapes) > 1 else result


def with_vectors(step: Step, value: Value, vectors: Iterable[Value | None]) -> Value:
    """A value times weights and plus biases of its last dimensions."""
    return step.space.merge([value, *(vector for vector in vectors if vector is not None)], step.shape, step.node)


def _read(step: Step, first: int) -> Value:
    """The first operand, normalised over its dimensions from ``first`` on."""
    value = step.args[0]
    mixed = frozenset(range(first, len(value.shape)))
    return Value(step.shape, tuple(plane for plane, _ in read_over(step, value, mixed, f"{step.name} mixes all of it")))


@rule("group_norm")
def group_norm(step: Step) -> Result:
    """The channels of a norm group share their statistics, so they live and die together; a single group is read."""
    value, count = step.args[0], int(step.args[1])
    if count == 1:
        result = _read(step, 1)
    else:
        channels = channels_along(step, value, 1, "group_norm mixes its positions")
        if channels is not None:
            table = channels.view(count, -1)
            step.space.unite_(table, table[:, :1])
        result = Value(step.shape, () if channels is None else (along(channels, 1, step.shape),))
    for vector in (step.get(2, "weight"), step.get(3, "bias")):
        result = channel_vector(step, result, vector, 1)
    return result


@rule("prelu")
def prelu(step: Step) -> Result:
    """One slope for all, or one a channel."""
    value, slope = step.args[:2]
    return value if slope.shape in ((), (1,)) else channel_vector(step, value, slope, 1)
