"""Augmentation of images by a transform of the user's own, which may draw from any of the usual random generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0compress.data import Batch
from l0compress.errors import DataError
from l0compress.loading.references import FOREIGN_ERRORS, first_line, import_extra, import_reference, is_reference

Augment = Callable[[Batch, torch.Generator], Batch]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
_SEEDS = 2**31


def check_reference(text: str) -> None:
    """Raises:
    DataError: the text is no name of a function.
    """
    if not is_reference(text):
        raise DataError(
            f"--augment {text!r} does not have the form package.module:function.",
            fix="Write for example --augment mine:transform.",
        )


def augmentation(reference: str, normalize: Statistics | None, sample: Tensor) -> Augment:
    """What changes the images of a training batch ``(n, channels, height, width)``, one by one.

    The transform gets a float tensor ``(channels, height, width)`` with values in [0, 1], or a PIL image if it cannot
    take that, and returns either, of the same size. Before each image every generator is seeded by a number from the
    epoch's own, so that an epoch is the same whenever it is run; afterwards they stand as before.

    Args:
        reference: ``package.module:function`` of the transform.
        normalize: what the images were normalised by.
        sample: one image, on which it is tried.

    Raises:
        DataError: the transform cannot be imported, or cannot be used on the sample.
    """
    transform = import_reference(reference, flag="--augment", error=DataError)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in normalize or ((0.0,), (1.0,)))
    changed = _usable(transform, reference, sample * std + mean)

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        (images,) = batch.args
        seeds = torch.randint(_SEEDS, (len(images),), generator=generator).tolist()
        with _generators_as_before():
            made = []
            for image, seed in zip(images, seeds, strict=True):
                _seed(seed)
                made.append((changed(image * std + mean) - mean) / std)
        return replace(batch, args=(torch.stack(made),))

    return augment


def _usable(transform: Any, reference: str, image: Tensor) -> Callable[[Tensor], Tensor]:
    """The transform from tensor to tensor, by whichever way it takes the image."""
    reasons = []
    for way in (_as_tensor, _as_picture):

        def changed(values: Tensor, way: Callable[..., Any] = way) -> Tensor:
            return _floats(way(transform, values))

        with _generators_as_before():
            try:
                _seed(0)
                found = changed(image)
            except FOREIGN_ERRORS as reason:
                reasons.append(first_line(reason))
                continue
        if found.shape != image.shape:
            raise DataError(
                f"--augment {reference!r} makes {tuple(found.shape)} of an image {tuple(image.shape)}.",
                fix="It must not change the shape; --image-size says how large images are.",
            )
        return changed
    raise DataError(
        f"--augment {reference!r} can be used neither on a tensor ({reasons[0]}) nor on a PIL image ({reasons[1]}).",
        fix="Name a function or a transform of one image.",
    )


def _as_tensor(transform: Any, image: Tensor) -> Any:
    return transform(image.clone())


def _as_picture(transform: Any, image: Tensor) -> Any:
    pillow = import_extra("PIL.Image", extra="images", purpose="Augmentation", error=DataError)
    pixels = (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return transform(pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def _floats(made: Any) -> Tensor:
    """An image of any kind as a float tensor with values in [0, 1]."""
    if not isinstance(made, Tensor):
        pixels = np.array(made)
        made = torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)
    made = made.as_subclass(Tensor)
    return made.float() / 255 if made.dtype == torch.uint8 else made.float()


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def _generators_as_before() -> Iterator[None]:
    ours, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        random.setstate(python)
        np.random.set_state(numpy)
