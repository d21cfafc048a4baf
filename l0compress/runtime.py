"""The name that :mod:`l0compress_runtime` had before it became a distribution of its own; both can be imported.

``l0compress.runtime.x`` *is* the module ``l0compress_runtime.x``. So classes are the same by either name, and what was
pickled of them under the old one can be read:

>>> import l0compress.runtime.layers, l0compress_runtime.layers
>>> l0compress.runtime.layers is l0compress_runtime.layers
True
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import l0compress_runtime
from l0compress_runtime import Bundle, load

__all__ = ["Bundle", "load"]

# Only what has a path may have submodules. It is empty: they are found by the class below.
__path__: list[str] = []


class _OldNames(MetaPathFinder, Loader):
    """Finds a module below the old name where it is below the new one, and hands over that very module."""

    def find_spec(self, fullname: str, _path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        there = importlib.util.find_spec(l0compress_runtime.__name__ + fullname.removeprefix(__name__))
        return ModuleSpec(fullname, self, loader_state=there) if there else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return importlib.import_module(spec.loader_state.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs a second time; the import system has written its own spec into the module, which goes."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


# First: a subpackage has a path, on which the usual finder would find its modules, and load each of them twice.
sys.meta_path.insert(0, _OldNames())
