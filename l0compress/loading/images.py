"""Folders of images: one folder per class, under ``train``, ``val`` and ``test`` if such folders exist."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from l0compress.data import AnySplit, Data, Split, StreamSplit
from l0compress.errors import DataError
from l0compress.loading.augmentation import augmentation
from l0compress.loading.references import FOREIGN_ERRORS, first_line, import_extra
from l0compress.loading.splits import PART_NAMES, SHARES, check_shares, shuffled_parts, with_val

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IN_MEMORY_BYTES = 2**30
GREY = ("1", "L", "I;16")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ImageFormat:
    """How files become tensors.

    Attributes:
        channels: 1 (greyscale) or 3 (RGB).
        size: height and width in pixels.
        resize: scale the shorter side to ``size`` and crop the centre; otherwise another size is an error.
        normalize: mean and standard deviation of each channel, for values in [0, 1]; None leaves the values.
    """

    channels: int
    size: tuple[int, int]
    resize: bool
    normalize: Statistics | None

    def described(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return it as plain values: what a deployment has to repeat."""
        mean, std = self.normalize or ((0.0,) * self.channels, (1.0,) * self.channels)
        return {
            "kind": "images", "channels": self.channels, "size": list(self.size), "resize": self.resize,
            "scale": 1 / 255, "mean": list(mean), "std": list(std), "classes": list(classes),
        }  # fmt: skip


def parse_normalize(text: str) -> Statistics:
    """Parse ``imagenet``, or means and standard deviations such as ``0.5,0.5,0.5/0.2,0.2,0.2``.

    Example:
        >>> parse_normalize("0.13/0.31")
        ((0.13,), (0.31,))

    Raises:
        DataError: the form is wrong, or a deviation is not positive.
    """
    if text == "imagenet":
        return IMAGENET
    try:
        mean, std = (tuple(float(number) for number in side.split(",")) for side in text.split("/"))
    except ValueError as reason:
        raise _bad_normalize(text) from reason
    if len(mean) != len(std) or len(mean) not in (1, 3) or not all(number > 0 for number in std):
        raise _bad_normalize(text)
    return mean, std


def _bad_normalize(text: str) -> DataError:
    return DataError(
        f"--normalize {text!r} is neither 'imagenet' nor means and standard deviations of 1 or 3 channels.",
        fix="Write for example --normalize 0.5,0.5,0.5/0.25,0.25,0.25.",
    )


class ImageFiles(Dataset):
    """Images decoded on request: for folders that do not fit in memory."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], form: ImageFormat) -> None:
        self._files, self._labels, self._form = files, labels, form

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return _floats(_decoded(self._files[index], self._form)[None], self._form)[0], self._labels[index]


@dataclass(frozen=True)
class ImageOptions:
    """The caller's options; see :class:`l0compress.loading.DataSource`."""

    seed: int = 0
    shares: tuple[float, float, float] = SHARES
    size: int | None = None
    normalize: Statistics | None = None
    workers: int = 0
    batch_size: int = 64
    augment: str | None = None


def load_images(folder: Path, options: ImageOptions) -> Data:
    """Read a folder of images as data with class labels, the classes in the order of their names.

    Raises:
        DataError: there are no images, classes differ between parts, or a file is damaged or of another size.
    """
    parts = {PART_NAMES[entry.name]: entry for entry in sorted(folder.iterdir()) if entry.name in PART_NAMES}
    classes = _classes(parts.get("train", folder))
    if not classes:
        raise DataError(
            f"Data {str(folder)!r} is a folder without class folders of images.",
            fix=f"Expected are files such as {folder}/cat/1.png, or {folder}/train/cat/1.png.",
        )
    if parts:
        check_shares(options.shares, str(folder))
    listed = {part: _listed(entry, classes) for part, entry in (parts or {"train": folder}).items()}
    if not parts:
        files, labels = listed["train"]
        indices = shuffled_parts(len(files), str(folder), options.seed, options.shares, torch.tensor(labels))
        listed = {part: ([files[i] for i in index], [labels[i] for i in index]) for part, index in indices.items()}
    form = _format_of(listed["train"][0][0], options)
    splits = {part: _split(files, labels, form, options, part) for part, (files, labels) in listed.items()}
    data = with_val(splits, str(folder), options.seed, form.described(classes))
    if options.augment is None:
        return data
    sample = _floats(_decoded(listed["train"][0][0], form)[None], form)[0]
    return replace(data, augment=augmentation(options.augment, form.normalize, sample))


def _classes(folder: Path) -> list[str]:
    return [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and _images(entry)]


def _images(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]


def _listed(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    unknown = sorted(set(_classes(folder)) - set(classes))
    if unknown:
        raise DataError(
            f"Data {str(folder)!r} has a class {unknown[0]!r}, which the training part lacks ({', '.join(classes)}).",
            fix="Give every part the same class folders.",
        )
    found = [(file, label) for label, name in enumerate(classes) for file in _images(folder / name)]
    return [file for file, _ in found], [label for _, label in found]


def _format_of(file: Path, options: ImageOptions) -> ImageFormat:
    image = _opened(file)
    channels = 1 if image.mode in GREY else 3
    if options.normalize is not None and len(options.normalize[0]) != channels:
        raise DataError(
            f"--normalize is for {len(options.normalize[0])} channels, but image {str(file)!r} has {channels}.",
            fix="Give a mean and a deviation for each channel of the images.",
        )
    size = (image.height, image.width) if options.size is None else (options.size, options.size)
    return ImageFormat(channels, size, options.size is not None, options.normalize)


def _split(files: list[Path], labels: list[int], form: ImageFormat, options: ImageOptions, part: str) -> AnySplit:
    if not files:
        raise DataError(f"The {part} part has no images.", fix="Add some, in a folder for each class.")
    num_bytes = 4 * len(files) * form.channels * form.size[0] * form.size[1]
    if num_bytes <= IN_MEMORY_BYTES:
        with ThreadPoolExecutor(max(1, options.workers)) as pool:
            pixels = torch.stack(list(pool.map(lambda file: _decoded(file, form), files)))
        return Split((_floats(pixels, form),), torch.tensor(labels))
    loader = DataLoader(
        ImageFiles(files, labels, form),
        batch_size=options.batch_size,
        shuffle=part == "train",
        num_workers=options.workers,
    )
    classes = torch.tensor(labels)
    if part == "train":
        classes = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(options.seed))]
    return StreamSplit(loader, len(files), classes.split(options.batch_size))


def _opened(file: Path) -> Any:
    pillow = import_extra("PIL.Image", extra="images", purpose="An image folder", error=DataError)
    try:
        with warnings.catch_warnings():
            # A small file may claim an image of many gigabytes.
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            return pillow.open(io.BytesIO(file.read_bytes()), formats=FORMATS)
    except (*FOREIGN_ERRORS, pillow.DecompressionBombWarning, pillow.DecompressionBombError) as reason:
        raise DataError(
            f"Image {str(file)!r} cannot be read ({first_line(reason)}).", fix="Repair or remove it."
        ) from reason


def _decoded(file: Path, form: ImageFormat) -> Tensor:
    """Return the pixels as uint8, ``(channels, height, width)``."""
    image = _opened(file)
    height, width = form.size
    try:
        if form.resize:
            scale = max(height / image.height, width / image.width)
            scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
            image = image.convert("L" if form.channels == 1 else "RGB").resize(scaled)
            left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.array(image.convert("L" if form.channels == 1 else "RGB"))
    except FOREIGN_ERRORS as reason:
        raise DataError(
            f"Image {str(file)!r} is damaged ({first_line(reason)}).", fix="Repair or remove it."
        ) from reason
    if pixels.shape[:2] != form.size:
        raise DataError(
            f"Image {str(file)!r} has {pixels.shape[1]} x {pixels.shape[0]} pixels, but the first one has {width} x "
            f"{height}.",
            fix="Pass --image-size to resize all of them.",
        )
    return torch.from_numpy(pixels).view(*form.size, form.channels).permute(2, 0, 1)


def _floats(pixels: Tensor, form: ImageFormat) -> Tensor:
    values = pixels.float() / 255
    if form.normalize is None:
        return values.contiguous()
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in form.normalize)
    return ((values - mean) / std).contiguous()
