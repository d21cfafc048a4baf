"""Data sets of Hugging Face ``datasets``: in memory, and folders of ``save_to_disk``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from l0compress.data import Data, DatasetSplit
from l0compress.data.batches import TARGET_KEYS
from l0compress.data.loaders import dataset_labels
from l0compress.errors import DataError
from l0compress.loading.references import FOREIGN_ERRORS, first_line, import_extra
from l0compress.loading.splits import PART_NAMES, SHARES, check_shares, split_whole, with_val
from l0compress.loading.tables import TableOptions, table_of
from l0compress.loading.texts import LABEL_COLUMNS, TEXT_COLUMNS, Sentences, TextOptions, encoded_parts

STATE, PARTS = "state.json", "dataset_dict.json"
TOKENS = "input_ids"
_SCALARS = ("int", "uint", "float", "bool")


@dataclass(frozen=True)
class HubOptions:
    """The caller's options; see :class:`l0compress.loading.DataSource`."""

    tokenizer: Path | None = None
    max_length: int | None = None
    target: str | None = None
    seed: int = 0
    shares: tuple[float, float, float] = SHARES


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one of ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``."""
    return (folder / PARTS).is_file() or ((folder / STATE).is_file() and any(folder.glob("*.arrow")))


def is_dataset(content: Any) -> bool:
    """Whether an object is a ``datasets.Dataset``."""
    # Whoever has one has imported what it is of.
    known: Any = sys.modules.get("datasets.arrow_dataset")
    return known is not None and isinstance(content, known.Dataset)


def dataset_split(dataset: Any) -> DatasetSplit:
    """A part of a ``datasets.Dataset``: its columns of numbers by name, and the labels among them.

    Columns of text are left out, as ``transformers.Trainer`` leaves them out after tokenization.

    Raises:
        DataError: no column of numbers is left besides the labels.
    """
    numbers = [name for name, feature in dataset.features.items() if _is_numeric(feature)]
    if not [name for name in numbers if name not in TARGET_KEYS]:
        raise DataError(
            f"A Dataset with the columns {', '.join(dataset.column_names)} has none of numbers besides the labels.",
            fix="Tokenize it: dataset.map(lambda rows: tokenizer(rows['text'], padding='max_length'), batched=True).",
        )
    left = dataset if len(numbers) == len(dataset.column_names) else dataset.select_columns(numbers)
    return DatasetSplit(left, torch.arange(len(left)), dataset_labels(left))


def _is_numeric(feature: Any) -> bool:
    inner = feature
    while not hasattr(inner, "dtype") or inner.dtype == "list":
        inner = getattr(inner, "feature", None)
        if inner is None:
            return False
    return str(inner.dtype).startswith(_SCALARS)


def load_saved_dataset(path: Path, options: HubOptions) -> Data:
    """Read a folder of ``save_to_disk``: sentences with a tokenizer, a table with a target column, or arrays.

    Raises:
        DataError: ``datasets`` is not installed, the folder is damaged, or its columns are not what the options want.
    """
    library = import_extra("datasets", extra="datasets", purpose="A folder of save_to_disk", error=DataError)
    try:
        library.disable_progress_bars()
        found = library.load_from_disk(str(path))
    except FOREIGN_ERRORS as reason:
        raise DataError(
            f"Cannot read data {str(path)!r} ({first_line(reason)}).", fix="Save it again with save_to_disk."
        ) from reason
    parts = _parts(found, path)
    if options.target is not None:
        return _table(parts, path, options)
    if _are_texts(parts["train"]):
        return _texts(parts, path, options)
    splits = {name: dataset_split(part) for name, part in parts.items()}
    if len(splits) == 1 and not isinstance(found, Mapping):
        return split_whole(splits["train"], str(path), options.seed, options.shares)
    check_shares(options.shares, str(path))
    return with_val(dict(splits), str(path), options.seed)


def _parts(found: Any, path: Path) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        return {"train": found}
    parts = {PART_NAMES[name]: part for name, part in found.items() if name in PART_NAMES}
    if "train" not in parts:
        raise DataError(
            f"Data {str(path)!r} has the parts {', '.join(map(str, found))}, none of which is for training.",
            fix="Name one of them train.",
        )
    return parts


def _are_texts(part: Any) -> bool:
    """Whether there is something to tokenize, and nobody has done so."""
    texts = [name for name in TEXT_COLUMNS if name in part.column_names]
    numbers = [name for name, feature in part.features.items() if _is_numeric(feature) and name not in TARGET_KEYS]
    return not numbers or (bool(texts) and TOKENS not in numbers)


def _table(parts: Mapping[str, Any], path: Path, options: HubOptions) -> Data:
    if len(parts) > 1:
        raise DataError(
            f"Data {str(path)!r} has the parts {', '.join(parts)}, but a table with a target column is one.",
            fix="Save them as one: datasets.concatenate_datasets(list(parts.values())).save_to_disk(...).",
        )
    return table_of(parts["train"].to_pandas(), path, TableOptions(options.target, options.seed, options.shares))


def _texts(parts: Mapping[str, Any], path: Path, options: HubOptions) -> Data:
    sentences = {name: _sentences(part, path) for name, part in parts.items()}
    how = TextOptions(options.tokenizer, options.seed, options.shares, options.max_length)
    return encoded_parts(sentences, path, how, whole=len(parts) == 1)


def _sentences(part: Any, path: Path) -> Sentences:
    text = next((name for name in TEXT_COLUMNS if name in part.column_names), None)
    label = next((name for name in LABEL_COLUMNS if name in part.column_names), None)
    if text is None or label is None:
        raise DataError(
            f"Data {str(path)!r} has the columns {', '.join(part.column_names)}; a text in one of "
            f"{', '.join(TEXT_COLUMNS)} and a label in one of {', '.join(LABEL_COLUMNS)} are expected.",
            fix="Rename them with rename_column and save it again.",
        )
    return Sentences(tuple(map(str, part[text])), tuple(map(str, part[label])))
