"""Tables (CSV, TSV) with a target column: missing values filled, numbers scaled, categories one-hot encoded.

scikit-learn fits the preprocessing on the training rows only; its results are recorded as plain values, and the data
are transformed with those. :func:`transform` repeats it anywhere, with NumPy alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l0compress.data import Data, Split, class_labels
from l0compress.errors import DataError
from l0compress.loading.references import FOREIGN_ERRORS, first_line, import_extra
from l0compress.loading.splits import SHARES, shuffled_parts

MOST_CATEGORIES = 1_000
MISSING = "(missing)"
SEPARATORS = {".csv": ",", ".tsv": "\t"}

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TableOptions:
    """The caller's options; see :class:`l0compress.loading.DataSource`."""

    target: str | None
    seed: int = 0
    shares: tuple[float, float, float] = SHARES


def load_table(path: Path, options: TableOptions) -> Data:
    """Read a table as data: ``(rows, features)`` float32, and classes or values by the type of the target column.

    Text, integers and yes/no make classes, in sorted order; decimal numbers are values to predict.

    Raises:
        DataError: the file is damaged, the column is missing, or a value cannot be used; the message names its line.
    """
    pandas = import_extra("pandas", extra="tables", purpose="A table", error=DataError)
    return table_of(_read(pandas, path), path, options)


def table_of(frame: Any, path: Path, options: TableOptions) -> Data:
    """As :func:`load_table`, of a data frame that was read from ``path``."""
    pandas = import_extra("pandas", extra="tables", purpose="A table", error=DataError)
    target = _target(frame, options.target, path)
    kept = {str(name): _values(pandas, frame[name]) for name in frame.columns if name != options.target}
    if not kept:
        raise DataError(
            f"Data {str(path)!r} has no column besides the target {options.target!r}.",
            fix="Add what the target is to be predicted from.",
        )
    labels, about = _labels(pandas, target)
    parts = shuffled_parts(len(frame), str(path), options.seed, options.shares, class_labels(labels))
    rows = parts["train"].numpy()
    features = [_fitted(name, values[rows], path) for name, values in kept.items()]
    inputs = torch.from_numpy(transform(kept, features))
    splits = {part: Split((inputs[index],), labels[index]) for part, index in parts.items()}
    description = {"kind": "table", "features": features, "target": {"column": options.target, **about}}
    return Data(splits["train"], splits["val"], splits.get("test"), preprocessing=description)


def transform(columns: Columns, features: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Transform columns to the model's inputs, ``(rows, features)`` float32: what a deployment repeats.

    Args:
        columns: by name, float64 with NaN or objects with None for missing values.
        features: ``features`` of a run's ``preprocessing.json``.

    Example:
        >>> size = {"column": "size", "kind": "number", "fill": 2.0, "mean": 1.0, "scale": 0.5}
        >>> hue = {"column": "hue", "kind": "category", "fill": "red", "categories": ["blue", "red"]}
        >>> transform({"size": np.array([np.nan, 1.0]), "hue": np.array([None, "blue"])}, [size, hue]).tolist()
        [[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]

    Raises:
        KeyError: a column is missing.
    """
    pieces = []
    for feature in features:
        values = columns[feature["column"]]
        if feature["kind"] == "number":
            filled = np.where(np.isnan(values.astype(np.float64)), feature["fill"], values.astype(np.float64))
            pieces.append((filled[:, None] - feature["mean"]) / feature["scale"])
        else:
            filled = np.array([feature["fill"] if value is None else str(value) for value in values], dtype=object)
            pieces.append(filled[:, None] == np.array(feature["categories"], dtype=object)[None, :])
    return np.concatenate([np.asarray(piece, np.float64) for piece in pieces], axis=1).astype(np.float32)


def _read(pandas: Any, path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = pandas.read_csv(path, sep=SEPARATORS[path.suffix], low_memory=False, engine="c")
    except (*FOREIGN_ERRORS, pandas.errors.ParserError, pandas.errors.EmptyDataError) as reason:
        raise DataError(
            f"Cannot read data {str(path)!r} as a table ({first_line(reason)}).",
            fix="Check that the first line names the columns and that every line has as many fields.",
        ) from reason
    if frame.empty:
        raise DataError(f"Data {str(path)!r} has no rows below its header.", fix="Give it samples.")
    return frame


def _target(frame: Any, name: str | None, path: Path) -> Any:
    columns = ", ".join(map(str, frame.columns))
    if name is None:
        raise DataError(
            f"Data {str(path)!r} is a table.",
            fix=f"Name the column to predict: --target-column, one of {columns}.",
        )
    if name not in frame.columns:
        raise DataError(f"Data {str(path)!r} has no column {name!r}.", fix=f"Name one of {columns} by --target-column.")
    missing = frame[name].isna().to_numpy().nonzero()[0]
    if len(missing):
        raise DataError(
            f"Data {str(path)!r}: the target {name!r} is missing in line {missing[0] + 2} ({len(missing)} such lines).",
            fix="Fill or remove them.",
        )
    return frame[name]


def _values(pandas: Any, column: Any) -> np.ndarray:
    if pandas.api.types.is_numeric_dtype(column) and not pandas.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    values = column.to_numpy(dtype=object)
    return np.array(
        [None if missing else str(value) for value, missing in zip(values, column.isna(), strict=True)], object
    )


def _fitted(name: str, values: np.ndarray, path: Path) -> dict[str, Any]:
    impute = import_extra("sklearn.impute", extra="tables", purpose="A table", error=DataError)
    scaling = import_extra("sklearn.preprocessing", extra="tables", purpose="A table", error=DataError)
    if values.dtype != object:
        if np.isinf(values).any():
            raise DataError(
                f"Data {str(path)!r}: column {name!r} has a value that is not finite.",
                fix="Leave the cell empty where the value is unknown.",
            )
        if np.isnan(values).all():
            raise DataError(f"Data {str(path)!r}: column {name!r} is empty.", fix="Remove the column.")
        imputer = impute.SimpleImputer(strategy="median").fit(values[:, None])
        scaler = scaling.StandardScaler().fit(imputer.transform(values[:, None]))
        fill, mean, scale = (float(number[0]) for number in (imputer.statistics_, scaler.mean_, scaler.scale_))
        return {"column": name, "kind": "number", "fill": fill, "mean": mean, "scale": scale}
    known = np.array([MISSING if value is None else value for value in values], dtype=object)[:, None]
    encoder = scaling.OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(known)
    categories = [str(category) for category in encoder.categories_[0]]
    if len(categories) > MOST_CATEGORIES:
        raise DataError(
            f"Data {str(path)!r}: column {name!r} has {len(categories):,} different strings, too many for a category.",
            fix="Remove the column.",
        )
    return {"column": name, "kind": "category", "fill": MISSING, "categories": categories}


def _labels(pandas: Any, target: Any) -> tuple[Tensor, dict[str, Any]]:
    if pandas.api.types.is_float_dtype(target):
        return torch.tensor(target.to_numpy(dtype=np.float32)), {"kind": "value"}
    values = target.to_numpy()
    classes = sorted(set(values.tolist()), key=lambda value: (isinstance(value, str), value))
    index = {value: position for position, value in enumerate(classes)}
    labels = torch.tensor([index[value] for value in values.tolist()])
    return labels, {"kind": "class", "classes": [str(value) for value in classes]}
