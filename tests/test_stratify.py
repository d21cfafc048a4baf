"""Splits by class: exact shares of every class, seeded, refused where there are no classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from l0compress.errors import DataError
from l0compress.loading import DataSource, load_data
from l0compress.loading.splits import StratifiedShares, shuffled_parts
from l0compress.pipeline.config import complete
from l0compress.pipeline.requests import data_source, data_values

SIZES = (1, 2, 3, 7, 10, 33, 100)


def labels() -> Tensor:
    return torch.cat([torch.full((size,), label) for label, size in enumerate(SIZES)])


def parts(seed: int = 0, shares: tuple[float, float, float] = (0.6, 0.2, 0.2)) -> dict[str, Tensor]:
    return shuffled_parts(sum(SIZES), "data", seed, StratifiedShares(shares), labels())


@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.2), (0.5, 0.25, 0.25), (0.9, 0.1, 0.0), (0.29, 0.41, 0.3)])
def test_every_class_keeps_the_shares_within_one_sample(shares: tuple[float, float, float]) -> None:
    found = parts(shares=shares)
    for name, share in zip(("train", "val", "test"), shares, strict=True):
        counts = labels()[found.get(name, torch.tensor([], dtype=torch.long))].bincount(minlength=len(SIZES))
        exact = torch.tensor(SIZES) * share
        assert ((counts - exact).abs() < 1).all()
        assert abs(counts.sum() - exact.sum()) < 2


def test_every_sample_is_in_one_part() -> None:
    assert torch.cat(list(parts().values())).sort().values.tolist() == list(range(sum(SIZES)))


def test_the_seed_decides_who_goes_where() -> None:
    assert all(torch.equal(parts(3)[name], parts(3)[name]) for name in parts(3))
    assert not torch.equal(parts(3)["val"], parts(4)["val"])


def test_data_by_name_and_by_a_configuration_file() -> None:
    source = DataSource("digits", stratify=True, seed=1)
    data = source.load()
    whole = torch.cat([part.known_labels() for part in data.parts().values()]).bincount()
    for name, share in zip(("train", "val", "test"), source.shares, strict=True):
        assert ((data.parts()[name].known_labels().bincount() - whole * share).abs() < 1).all()
    assert data_source({**complete({}), **data_values(source)}) == source


def test_without_it_a_split_is_what_it_was() -> None:
    plain = shuffled_parts(sum(SIZES), "data", 0, (0.6, 0.2, 0.2), labels())
    assert [len(index) for index in plain.values()] == [93, 31, 32]


def test_numbers_to_predict_are_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "values.npz"
    np.savez(path, x=np.zeros((20, 2), np.float32), y=np.linspace(0, 1, 20, dtype=np.float32))
    with pytest.raises(DataError) as raised:
        load_data(DataSource(str(path), stratify=True))
    assert str(raised.value) == (
        f"--stratify splits by classes, but those of data '{path}' are not known before they are read. Nothing was "
        "changed. Omit it, or give one class for every sample."
    )


def test_data_with_parts_have_nothing_to_split(tmp_path: Path) -> None:
    path = tmp_path / "parts.npz"
    x, y = np.zeros((24, 2), np.float32), np.arange(24) % 2
    np.savez(path, x_train=x, y_train=y, x_val=x, y_val=y)
    with pytest.raises(DataError, match=r"^--stratify is for a single set of data, but data '.*' already has parts\."):
        load_data(DataSource(str(path), stratify=True))
