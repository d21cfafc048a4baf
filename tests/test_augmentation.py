"""Augmented images: training part only, the same in every run of an epoch, whatever generator the transform uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from l0compress.data import Batch
from l0compress.errors import DataError
from l0compress.loading import DataSource
from l0compress.loading.augmentation import augmentation
from l0compress.pipeline.config import complete
from l0compress.pipeline.requests import data_source, data_values

pytest.importorskip("PIL")
HALF = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGES = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5).div(255)
NORMALIZED = (IMAGES - 0.5) / 0.25


def augmented(name: str, seed: int = 0) -> torch.Tensor:
    augment = augmentation(f"own_transforms:{name}", HALF, NORMALIZED[0])
    batch = augment(Batch((NORMALIZED,), {}, torch.tensor([0, 1])), torch.Generator().manual_seed(seed))
    return batch.args[0]


@pytest.mark.parametrize("name", ["flip", "mirrored"])
def test_a_transform_sees_the_image_before_it_is_normalized(name: str) -> None:
    torch.testing.assert_close(augmented(name), NORMALIZED.flip(-1), atol=1e-5, rtol=0)


def test_the_epoch_decides_and_every_image_draws_its_own() -> None:
    one, again, other = augmented("noisy", 0), augmented("noisy", 0), augmented("noisy", 1)
    assert torch.equal(one, again) and not torch.equal(one, other)
    added = (one - NORMALIZED).flatten(1)
    assert not torch.allclose(added[0], added[1])


def test_the_global_generators_stand_as_before() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    augmented("noisy")
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()


def test_a_folder_of_images_has_it_for_training(tmp_path: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(10):
            pixels = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    source = DataSource(str(tmp_path), augment="own_transforms:flip", normalize=HALF)
    assert source.load().augment is not None
    assert DataSource(str(tmp_path), normalize=HALF).load().augment is None
    assert data_source({**complete({}), **data_values(source)}) == source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cropped", "--augment 'own_transforms:cropped' makes (3, 3, 5) of an image (3, 4, 5)."),
        ("nothing", "--augment 'own_transforms:nothing': module 'own_transforms' has no 'nothing'."),
        (
            "broken",
            "--augment 'own_transforms:broken' can be used neither on a tensor (ValueError: not of Tensor) nor on a "
            "PIL image (ValueError: not of Image).",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(name: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        augmented(name)
    assert str(raised.value).startswith(message)


def test_it_is_for_images_alone() -> None:
    with pytest.raises(DataError, match=r"^--augment is for a folder of images, but data 'digits' is the digits\."):
        DataSource("digits", augment="own_transforms:flip").load()
