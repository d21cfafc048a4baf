"""Transforms of images as users write them: on tensors and on PIL images, with any random generator."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def flip(image: Tensor) -> Tensor:
    return image.flip(-1)


def noisy(image: Tensor) -> Tensor:
    noise = torch.rand(1).item() + random.random() + np.random.rand()
    return (image + 0.05 * noise).clamp(0, 1)


def mirrored(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image)


def cropped(image: Tensor) -> Tensor:
    return image[:, 1:]


def broken(image: object) -> Tensor:
    raise ValueError(f"not of {type(image).__name__}")
