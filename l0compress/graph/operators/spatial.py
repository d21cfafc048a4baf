"""Pooling and interpolation: they work inside a channel, so channels pass."""

from __future__ import annotations

from math import prod

from l0compress.graph.labels.values import Value, along, core
from l0compress.graph.operators.normalization import channels_along
from l0compress.graph.operators.record import Operator, Result, register
from l0compress.graph.operators.reduction import spatial_planes
from l0compress.graph.operators.step import Step, one_or_many

_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
_UPSAMPLES = {
    1: ("upsample_linear1d", "upsample_nearest1d", "_upsample_nearest_exact1d"),
    2: (
        "upsample_bilinear2d",
        "upsample_nearest2d",
        "upsample_bicubic2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
        "_upsample_nearest_exact2d",
    ),
    3: ("upsample_trilinear3d", "upsample_nearest3d", "_upsample_nearest_exact3d"),
}


def _resampled(step: Step, num_spatial: int) -> Result:
    planes = spatial_planes(step, step.args[0], num_spatial)
    results = tuple(Value(shape, tuple(core(plane).expand(shape) for plane in planes)) for shape in step.shapes)
    return one_or_many(results)


def resample_1d(step: Step) -> Result:
    return _resampled(step, 1)


def resample_2d(step: Step) -> Result:
    return _resampled(step, 2)


def resample_3d(step: Step) -> Result:
    return _resampled(step, 3)


def unpool(step: Step) -> Result:
    """The indices that come with the pool are positions inside a channel."""
    num_spatial = int(step.name.removesuffix("d")[-1])
    pooled = step.space.merge(list(step.args[:2]), step.args[0].shape, step.node)
    planes = spatial_planes(step, pooled, num_spatial)
    return Value(step.shape, tuple(core(plane).expand(step.shape) for plane in planes))


def grid_sampler(step: Step) -> Result:
    value, grid = step.args[:2]
    step.freeze(grid, "its values are positions")
    channels = channels_along(step, value, 1, "it is sampled at positions known at run time")
    return Value(step.shape, () if channels is None else (along(channels, 1, step.shape),))


def im2col(step: Step) -> Result:
    """Every channel becomes as many as its patch has positions."""
    value, kernel = step.args[:2]
    channels = channels_along(step, value, len(value.shape) - 3, "patches are taken over it")
    if channels is None:
        return Value(step.shape)
    return Value(step.shape, (along(channels.repeat_interleave(prod(kernel)), len(step.shape) - 2, step.shape),))


def col2im(step: Step) -> Result:
    """The positions of a patch are one channel again."""
    value, kernel = step.args[0], step.args[2]
    channels = channels_along(step, value, len(value.shape) - 2, "patches are summed over it")
    if channels is None:
        return Value(step.shape)
    table = channels.view(-1, prod(kernel))
    step.space.unite_(table, table[:, :1])
    return Value(step.shape, (along(table[:, 0], len(step.shape) - 3, step.shape),))


register(Operator(label=resample_1d), *(f"{pool}1d" for pool in _POOLS), "max_pool1d_with_indices", *_UPSAMPLES[1])
register(Operator(label=resample_2d), *(f"{pool}2d" for pool in _POOLS), "max_pool2d_with_indices", *_UPSAMPLES[2])
register(Operator(label=resample_3d), *(f"{pool}3d" for pool in _POOLS), "max_pool3d_with_indices", *_UPSAMPLES[3])
register(Operator(label=resample_2d), "_adaptive_avg_pool2d")
register(Operator(label=resample_3d), "_adaptive_avg_pool3d")
register(Operator(label=unpool), "max_unpool2d", "max_unpool3d")
register(Operator(label=grid_sampler), "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
register(Operator(label=im2col), "im2col")
register(Operator(label=col2im), "col2im")
