"""Normalisations: per-channel ones pass channels on, those that mix channels freeze them."""

from __future__ import annotations

from l0compress.graph.rules.registry import Result, Step, one_or_many, rule
from l0compress.graph.values import Value, along, flattened, varying


def channel_vector(step: Step, value: Value, vector: Value | None, dim: int) -> Value:
    """Merge a per-channel vector (a bias, a running mean) into ``value`` along ``dim``."""
    if vector is None:
        return value
    shape = tuple(size if d == dim else 1 for d, size in enumerate(value.shape))
    planes = tuple(along(flattened(plane), dim, shape) for plane in vector.planes)
    return step.space.merge([value, Value(shape, planes)], value.shape, step.node)


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


@rule("layer_norm", "rms_norm", "native_layer_norm")
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


@rule("group_norm", "native_group_norm")
def group_norm(step: Step) -> Result:
    for value in step.tensors():
        step.freeze(value, f"{step.name} mixes channels within a group")
    results = tuple(Value(shape) for shape in step.shapes)
    return one_or_many(results)
