"""PyTorch makes the registries of its exporters anew at each call, which takes longer than a small network; here, once.

What is kept is handed out as copies, and made again as soon as operators are registered, so that every test sees what
it would see without. A PyTorch that keeps other registries is left as it is.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch

_TRANSLATIONS = "torch.onnx._internal.exporter._registration"
_OPERATORS = "torch._export.utils"

_done: set[str] = set()


def keep_registries_() -> None:
    """Keep the registries of those exporters that have been imported."""
    for name, keep_ in ((_TRANSLATIONS, _keep_translations_), (_OPERATORS, _keep_operators_)):
        if name in sys.modules and name not in _done:
            _done.add(name)
            keep_(sys.modules[name])


def _keep_translations_(module: Any) -> None:
    """The translations of operators to ONNX; those of the user's own are added to a copy."""
    registry = getattr(module, "ONNXRegistry", None)
    if registry is None or not hasattr(registry, "from_torchlib"):
        return
    make, kept = registry.from_torchlib, {}

    def from_torchlib(*version: int, **named: int) -> Any:
        asked = (*version, *named.values())
        if asked not in kept:
            kept[asked] = make(*version, **named)
        made = copy.copy(kept[asked])
        made.functions = {target: list(known) for target, known in made.functions.items()}
        return made

    registry.from_torchlib = staticmethod(from_torchlib)


def _keep_operators_(module: Any) -> None:
    """The operators that are known to the dispatcher, as attributes of ``torch.ops``."""
    make: Callable[[], None] | None = getattr(module, "_materialize_cpp_cia_ops", None)
    if make is None:
        return
    seen: list[list[str]] = []

    def materialize() -> None:
        known = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if seen != [known]:
            make()
            seen[:] = [known]

    module._materialize_cpp_cia_ops = materialize
