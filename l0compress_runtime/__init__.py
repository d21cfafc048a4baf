"""Run compressed models on numpy, scipy and onnxruntime, without torch.

Example::

    import l0compress_runtime

    model = l0compress_runtime.load("model.l0c", threads=2)
    outputs = model.run({"x": array})

Only the engine named torch imports torch, and only when a layer runs on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from l0compress_runtime.errors import InputError, L0Error, RunError

if TYPE_CHECKING:
    from l0compress_runtime.bundle import Bundle, load

__version__ = "0.1.0"

__all__ = ["Bundle", "InputError", "L0Error", "RunError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Load the loader on first use: importing only the errors then waits for neither scipy nor onnxruntime."""
    if name not in ("Bundle", "load"):
        raise AttributeError(f"module 'l0compress_runtime' has no attribute {name!r}")
    from l0compress_runtime import bundle

    globals().update(Bundle=bundle.Bundle, load=bundle.load)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
