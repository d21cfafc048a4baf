"""What the result of a finished run says, for its readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l0compress.errors import RunError
from l0compress.graph.groups.cost import Cost
from l0compress.measure.report import Measured
from l0compress.training.reading import Reading

_COSTS, _OLD_BYTES = ("dense", "small", "nonzero"), "size_bytes"


def read_result(path: Path) -> dict[str, Any]:
    """A run's result as it is written now: the bytes of a cost had a longer name before.

    Raises:
        RunError: the file is missing, or is not a JSON object.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {str(path)!r}: {error}.") from error
    if not isinstance(result, dict):
        raise RunError(f"Cannot read {str(path)!r}: a JSON object is expected.")
    for name in _COSTS:
        cost = result.get(name)
        if cost is not None and _OLD_BYTES in cost:
            result[name] = {"bytes" if key == _OLD_BYTES else key: value for key, value in cost.items()}
    return result


def measured(result: Mapping[str, Any], name: str, *, called: str = "") -> Measured:
    """What a run's result says of its ``dense`` or ``small`` model: cost, and the metric on the test part.

    The validation part stands in where there is no test part. The model is ``called`` something else where that is
    given.
    """
    nonzero = result.get("nonzero") if name == "small" else None
    return Measured(
        called or name,
        Cost(**result[name]),
        _scores(result)[name]["metric"],
        nonzero=None if nonzero is None else Cost(**nonzero),
    )


def targets_in(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The targets in a run's result, which has one as it is and several as a list.

    >>> targets_in({"target": {"unit": "macs", "limit": 50, "reached": 48}})
    [{'unit': 'macs', 'limit': 50, 'reached': 48}]
    """
    found = result["target"]
    return found if isinstance(found, list) else [found]


def metric_name(result: Mapping[str, Any], reading: Reading | None = None) -> str:
    """The name of the metric, and the part of the data that it was taken on."""
    name = _scores(result)["dense"]["metric_name"] if reading is None else reading.score_name
    return f"{'test' if result['test'] else 'validation'} {name}"


def json_bytes(value: Any) -> bytes:
    """A value as indented JSON."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _scores(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return result["test"] or result["val"]
