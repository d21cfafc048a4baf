"""Pooling and interpolation: they work inside a channel, so channels pass."""

from __future__ import annotations

from l0compress.graph.rules.reduction import spatial_planes
from l0compress.graph.rules.registry import Result, Step, one_or_many, rule
from l0compress.graph.values import Value, core

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


@rule(*(f"{pool}1d" for pool in _POOLS), "max_pool1d_with_indices", *_UPSAMPLES[1])
def resample_1d(step: Step) -> Result:
    return _resampled(step, 1)


@rule(*(f"{pool}2d" for pool in _POOLS), "_adaptive_avg_pool2d", "max_pool2d_with_indices", *_UPSAMPLES[2])
def resample_2d(step: Step) -> Result:
    return _resampled(step, 2)


@rule(*(f"{pool}3d" for pool in _POOLS), "_adaptive_avg_pool3d", "max_pool3d_with_indices", *_UPSAMPLES[3])
def resample_3d(step: Step) -> Result:
    return _resampled(step, 3)
