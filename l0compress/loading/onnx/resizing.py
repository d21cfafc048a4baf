"""Resizing of images."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from l0compress.loading.onnx.registry import operator
from l0compress.loading.onnx.values import SYMBOLIC, Refusal, axis_of, numbers

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@operator("Resize", since=11, sizes=(1, 2, 3))
def resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    del roi, extrapolation_value  # for a mode that is refused
    refused = {
        "antialias": antialias,
        "exclude_outside": exclude_outside,
        "keep_aspect_ratio_policy": keep_aspect_ratio_policy != "stretch",
    }
    if any(refused.values()):
        raise Refusal(f"it resizes with {next(name for name, wanted in refused.items() if wanted)}")
    given = numbers(sizes) if sizes is not None and numbers(sizes) else None
    factors = numbers(scales) if given is None else None
    targets, ratios = _targets(x, given, factors, axes)
    how = (mode, coordinate_transformation_mode, nearest_mode)
    if mode == "cubic" and cubic_coeff_a != -0.75:
        raise Refusal(f"its cubic coefficient is {cubic_coeff_a}, and PyTorch's is -0.75")
    return _resized(x, targets, ratios, how)


@operator("Resize", since=10, sizes=(1,))
def scaled_resize(x: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    """Resize as in version 10 of the operators, where coordinates are only multiplied."""
    return _resized(x, *_targets(x, None, numbers(scales), None), (mode, "asymmetric", "floor"))


@operator("Upsample", sizes=(1,))
def upsample(x: Tensor, given: Any = None, *, mode: str = "nearest", scales: tuple[float, ...] | None = None) -> Tensor:
    """Resize under its name up to version 9 of the operators."""
    factors = list(scales or ()) if given is None else numbers(given)
    return _resized(x, *_targets(x, None, factors, None), (mode, "asymmetric", "floor"))


@operator("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """Sample at a grid; the modes have other names up to version 19 of the operators."""
    name = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, name, padding_mode, bool(align_corners))


def _targets(
    x: Tensor, sizes: list[Any] | None, scales: list[Any] | None, axes: tuple[int, ...] | None
) -> tuple[list[Any], list[Any]]:
    """Return the size that every dimension is resized to, None if it stays, and the factor."""
    dims = [axis_of(axis, x.dim()) for axis in axes] if axes is not None else list(range(x.dim()))
    targets: list[Any] = [None] * x.dim()
    ratios: list[Any] = [1.0] * x.dim()
    for position, dim in enumerate(dims):
        own = x.shape[dim]
        if sizes is not None:
            # Batch and channels are listed with their current sizes.
            same = dim < 2 or (not isinstance(own, SYMBOLIC) and own == sizes[position])
            targets[dim], ratios[dim] = (None, 1.0) if same else (sizes[position], sizes[position] / own)
        elif scales is not None and not (isinstance(scales[position], (int, float)) and scales[position] == 1.0):
            scale = scales[position]
            targets[dim], ratios[dim] = torch.sym_int(math.floor(own * scale)), scale
    return targets, ratios


def _resized(x: Tensor, targets: list[Any], ratios: list[Any], how: tuple[str, str, str]) -> Tensor:
    if all(target is None for target in targets):
        return x
    plain = _interpolation(x, targets, ratios, how)
    if plain is not None:
        sizes = [own if target is None else target for own, target in zip(x.shape[2:], targets[2:], strict=True)]
        name, corners = plain
        whole = all(isinstance(ratio, float) and ratio.is_integer() for ratio in ratios[2:])
        if whole and corners is not True:
            return F.interpolate(x, scale_factor=ratios[2:], mode=name, align_corners=corners)
        return F.interpolate(x, sizes, mode=name, align_corners=corners)
    mode, coordinates, rounding = how
    if mode not in ("nearest", "linear"):
        raise Refusal(f"it resizes by {mode!r} with {coordinates!r}")
    for dim, (target, ratio) in enumerate(zip(targets, ratios, strict=True)):
        if target is not None:
            places = _places(x, dim, target, ratio, coordinates)
            x = _nearest(x, dim, places, rounding) if mode == "nearest" else _linear(x, dim, places)
    return x


def _interpolation(
    x: Tensor, targets: list[Any], ratios: list[Any], how: tuple[str, str, str]
) -> tuple[str, bool | None] | None:
    """Return the equivalent PyTorch mode, and whether it aligns corners; None if there is none."""
    mode, coordinates, rounding = how
    if x.dim() not in _LINEAR or targets[0] is not None or targets[1] is not None:
        return None
    # The factor must be the one that PyTorch infers from the sizes.
    exact = all(_is_exact(own, ratio) for own, ratio in zip(x.shape, ratios, strict=True))
    if mode == "nearest":
        growing = all(isinstance(ratio, float) and ratio.is_integer() for ratio in ratios)
        if exact and (
            (coordinates, rounding) == ("asymmetric", "floor")
            or (growing and (coordinates, rounding) == ("half_pixel", "round_prefer_floor"))
        ):
            return "nearest", None
        return (
            ("nearest-exact", None)
            if exact and (coordinates, rounding) == ("half_pixel", "round_prefer_ceil")
            else None
        )
    name = _LINEAR[x.dim()] if mode == "linear" else ("bicubic" if x.dim() == 4 else None)
    if name is None or coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    corners = coordinates == "align_corners"
    return (name, corners) if exact or corners else None


def _is_exact(own: Any, ratio: Any) -> bool:
    if isinstance(own, SYMBOLIC) or isinstance(ratio, SYMBOLIC):
        return not isinstance(ratio, float) or ratio.is_integer()
    return (own * ratio) == math.floor(own * ratio + 1e-9) or abs(own * ratio - round(own * ratio)) < 1e-6


def _places(x: Tensor, dim: int, target: Any, ratio: Any, coordinates: str) -> Tensor:
    """Return where every new position lies among the old ones. Source: the reference text of ONNX, Resize."""
    new = torch.arange(target, device=x.device, dtype=torch.float32)
    own = x.shape[dim]
    if coordinates == "asymmetric":
        return new / ratio
    if coordinates == "align_corners":
        return new * ((own - 1) / max(target - 1, 1))
    if coordinates == "half_pixel_symmetric":
        adjusted = target / (ratio * own)
        return own / 2 * (1 - adjusted) + (new + 0.5) / ratio - 0.5
    if coordinates in ("half_pixel", "pytorch_half_pixel"):
        return (new + 0.5) / ratio - 0.5
    raise Refusal(f"its coordinate_transformation_mode is {coordinates!r}")


def _nearest(x: Tensor, dim: int, places: Tensor, rounding: str) -> Tensor:
    if rounding == "round_prefer_floor":
        chosen = torch.ceil(places - 0.5)
    elif rounding == "round_prefer_ceil":
        chosen = torch.floor(places + 0.5)
    elif rounding in ("floor", "ceil"):
        chosen = torch.floor(places) if rounding == "floor" else torch.ceil(places)
    else:
        raise Refusal(f"its nearest_mode is {rounding!r}")
    return x.index_select(dim, chosen.long().clamp(0, x.shape[dim] - 1))


def _linear(x: Tensor, dim: int, places: Tensor) -> Tensor:
    inside = places.clamp(0, x.shape[dim] - 1)
    low = inside.floor()
    weight = (inside - low).to(x.dtype).reshape([-1 if d == dim else 1 for d in range(x.dim())])
    left = x.index_select(dim, low.long())
    right = x.index_select(dim, (low.long() + 1).clamp(max=x.shape[dim] - 1))
    return left * (1 - weight) + right * weight
