"""Normalisations: per-channel ones pass channels on, those that mix channels freeze them."""

from __future__ import annotations

from torch import Tensor

from l0compress.graph.rules.registry import Result, Step, rule
from l0compress.graph.space import ReadFact
from l0compress.graph.values import Value, along, core, flattened, varying


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
    value, last = step.args[0], len(step.shape) - 1
    plane = value.plane_along(last)
    if len(step.args[1]) != 1 or plane is None or varying(plane) != {last}:
        return layer_norm(step)
    step.space.reads.append(ReadFact(step.node, 0, plane, None))
    return channel_vector(step, value, step.get(2, "weight"), last)


@rule("layer_norm", "native_layer_norm")
def layer_norm(step: Step) -> Result:
    """The statistics run over the last dimensions: what they cover freezes, what lies outside passes."""
    value, size = step.args[0], step.args[1]
    inner = frozenset(range(len(value.shape) - len(size), len(value.shape)))
    planes = step.passed(value, inner, f"{step.name} mixes all of it")
    for vector in step.args[2:4]:
        if isinstance(vector, Value):
            step.freeze(vector, f"{step.name} mixes all of it")
    result = Value(step.shape, tuple(plane for plane in planes if varying(plane)))
    return (result, *(Value(shape) for shape in step.shapes[1:])) if len(step.shapes) > 1 else result


@rule("group_norm")
def group_norm(step: Step) -> Result:
    """The channels of a norm group share their statistics, so they live and die together."""
    value, count = step.args[0], int(step.args[1])
    vectors = [step.get(2, "weight"), step.get(3, "bias")]
    if count == 1:
        for operand in step.tensors():
            step.freeze(operand, "group_norm mixes all of it")
        return Value(step.shape)
    channels = channels_along(step, value, 1, "group_norm mixes its positions")
    if channels is not None:
        table = channels.view(count, -1)
        step.space.unite_(table, table[:, :1])
    result = Value(step.shape, () if channels is None else (along(channels, 1, step.shape),))
    for vector in vectors:
        result = channel_vector(step, result, vector, 1)
    return result


@rule("prelu")
def prelu(step: Step) -> Result:
    """One slope for all, or one a channel."""
    value, slope = step.args[:2]
    return value if slope.shape in ((), (1,)) else channel_vector(step, value, slope, 1)
