"""The operators that ``torch.onnx`` can translate, read once a process.

It asks onnxscript for them in every export, which parses the sources of all 500 functions again to learn their names:
half of the time that a small model takes. They do not change while a process runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

# Private to torch: a version of it that has no such function is as fast as it is.
_apis: Any = None
with suppress(ImportError):
    _apis = getattr(importlib.import_module("torch.onnx._internal.exporter._registration"), "onnxscript_apis", None)
_read: Any = getattr(_apis, "get_torchlib_ops", None)
_known = None if _read is None else cache(_read)


@contextmanager
def known_operators() -> Iterator[None]:
    """In this block, ``torch.onnx.export`` takes the operators that it was told the first time."""
    if _known is None:
        yield
        return
    try:
        _apis.get_torchlib_ops = _known
        yield
    finally:
        # A thread that is exporting too reads them itself from here on, and finds the same.
        _apis.get_torchlib_ops = _read
