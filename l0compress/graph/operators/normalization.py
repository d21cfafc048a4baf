"""Normalisations: those by channel pass channels on, those over channels read them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from l0compress.graph.labels.values import Value, along, core, flattened
from l0compress.graph.operators.cut import Cut
from l0compress.graph.operators.filling import filled_arguments, missing_from, narrow_
from l0compress.graph.operators.reading import read_over
from l0compress.graph.operators.record import OfConstant, Operator, Result, register
from l0compress.graph.operators.step import Step

aten = torch.ops.aten


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


def batch_norm(step: Step) -> Result:
    value = step.args[0]
    if step.name == "instance_norm":
        positions = frozenset(range(2, len(value.shape)))
        value = Value(value.shape, step.passed(value, positions, "instance_norm is taken over it"))
    for vector in step.args[1:5]:
        value = channel_vector(step, value, vector, 1)
    return value


def native_batch_norm(step: Step) -> Result:
    value = step.args[0]
    for vector in step.args[1:5]:
        if isinstance(vector, Value):
            value = channel_vector(step, value, vector, 1)
    return (value, *(Value(shape) for shape in step.shapes[1:]))


def rms_norm(step: Step) -> Result:
    """A mean of squares does not see zeros, so channels are read, and surgery keeps the dense count."""
    result = _read(step, len(step.shape) - len(step.args[1]))
    return with_vectors(step, result, [step.get(2, "weight")])


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


def prelu(step: Step) -> Result:
    """One slope for all, or one a channel."""
    value, slope = step.args[:2]
    return value if slope.shape in ((), (1,)) else channel_vector(step, value, slope, 1)


def fill_layer_norm(cut: Cut) -> None:
    shape: Any = cut.argument(1)
    first = len(cut.operands[0].dense) - len(shape)
    missing = missing_from(cut, first)
    if missing:
        arguments = filled_arguments(cut, missing, first)
        normal = cut.emit(aten.layer_norm.default, *arguments, cut.argument(4, "eps", 1e-5))
        narrow_(cut, cut.node, normal, missing)


def fill_native_layer_norm(cut: Cut) -> None:
    """As ``layer_norm``; the statistics that it returns as well are those of the dense count from the start."""
    shape: Any = cut.argument(1)
    first = len(cut.operands[0].dense) - len(shape)
    missing = missing_from(cut, first)
    if not missing:
        return
    cut.become(cut.node.target, *filled_arguments(cut, missing, first), cut.argument(4))
    for user in [user for user in cut.node.users if user.args[1] == 0]:
        with cut.network.graph.inserting_before(user):
            normal = cut.network.graph.call_function(operator.getitem, (cut.node, 0))
        narrow_(cut, user, normal, missing)


def fill_group_norm(cut: Cut) -> None:
    """One group is normalised as it was; of several whole ones go, and those that are left keep their width."""
    source, num_groups = cut.operands[0], cut.arguments[1]
    if num_groups > 1:
        if source.indices[1] is not None:
            cut.node.update_arg(1, source.shape[1] * num_groups // source.dense[1])
        return
    missing = missing_from(cut, 1)
    if missing:
        arguments = filled_arguments(cut, missing, 1)
        normal = cut.emit(aten.group_norm.default, *arguments, cut.argument(4, "eps", 1e-5))
        narrow_(cut, cut.node, normal, missing)


def keep_dense_mean_square(cut: Cut) -> None:
    """The mean of squares still divides by how many channels the dense model had.

    ``x / sqrt(s / dense + eps)`` is ``c * x / sqrt(s / live + eps * c**2)`` with ``c = sqrt(dense / live)``.
    """
    source, shape = cut.operands[0], list(cut.argument(1))
    first = len(source.dense) - len(shape)
    missing = missing_from(cut, first)
    if not missing:
        return
    for dim in missing:
        shape[dim - first] = source.shape[dim]
    share = math.prod(source.dense[dim] / source.shape[dim] for dim in missing)
    given = cut.argument(3, "eps")
    eps = torch.finfo(cut.dense.meta["val"].dtype).eps if given is None else given
    arguments = (cut.argument(0), shape, cut.argument(2, "weight"), eps * share)
    cut.become(aten.mul.Tensor, cut.emit(aten.rms_norm.default, *arguments), math.sqrt(share))


def has_fixed_statistics(node: fx.Node) -> bool:
    """Whether a batch norm normalises by its running statistics."""
    return isinstance(node.args[3], fx.Node) and node.args[5] is False


def normalise_constant(cut: Cut) -> None:
    """By the running statistics in training too: a constant has none of its own."""
    value, weight, bias, mean, var, _, momentum, eps = cut.node.args[:8]
    sizes = [cut.result.shape[1] if d == 1 else -1 for d in range(len(cut.result.dense))]
    spread = cut.emit(aten.expand.default, value, sizes)
    arguments = (spread, weight, bias, mean, var, momentum, eps)
    cut.become(operator.getitem, cut.emit(aten._native_batch_norm_legit_no_training.default, *arguments), 0)


register(
    Operator(label=batch_norm, of_constant=OfConstant(passes=has_fixed_statistics, rewrite=normalise_constant)),
    "batch_norm",
)
register(Operator(label=batch_norm), "instance_norm")
register(
    Operator(label=native_batch_norm),
    *("_native_batch_norm_legit_no_training", "native_batch_norm", "_native_batch_norm_legit"),
)
register(Operator(label=rms_norm, rewrite=keep_dense_mean_square), "rms_norm")
register(Operator(label=layer_norm, rewrite=fill_layer_norm), "layer_norm")
register(Operator(label=layer_norm, rewrite=fill_native_layer_norm), "native_layer_norm")
register(Operator(label=group_norm, rewrite=fill_group_norm), "group_norm")
register(Operator(label=prelu), "prelu")
