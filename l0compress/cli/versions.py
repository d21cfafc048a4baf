"""What ``--version`` prints: all that a report of a defect should say of an installation, none of it imported."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from l0compress import __version__
from l0compress.pipeline.machine import machine

# Those of them that are installed are named.
PACKAGES = (
    "l0compress-runtime", "torch", "numpy", "scipy", "onnx", "onnxruntime", "onnxscript", "numba", "transformers",
    "accelerate",
)  # fmt: skip


def versions() -> Iterator[tuple[str, str]]:
    """Yield name and version of this package, of Python, and of what results depend on; the machine comes last.

    >>> [name for name, _ in versions()][:4]
    ['l0compress', 'python', 'l0compress-runtime', 'torch']
    """
    yield "l0compress", __version__
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
    here = machine()
    cores = "1 core" if here["cores"] == 1 else f"{here['cores']} cores"
    yield "machine", f"{here['cpu']}, {cores}, {here['system']}"
