"""Sparse models on numpy, scipy and onnxruntime; torch only in the engine named after it, and only when it is used.

Example::

    import l0compress.runtime

    model = l0compress.runtime.load("model.l0c", threads=2)
    outputs = model.run({"x": array})
"""

from __future__ import annotations

from l0compress.runtime.bundle import Bundle, load

__all__ = ["Bundle", "load"]
