"""The choices that are made for a bundle before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l0compress.errors import NOTHING_WRITTEN, InputError
from l0compress_runtime.arguments import MOST_THREADS
from l0compress_runtime.coding import FLOAT_STORAGES


@dataclass(frozen=True)
class BundleSettings:
    """How a bundle is made.

    Attributes:
        storage: of weights in the file: float32, float16, bfloat16, or int8 with one scale per output for sparse
            layers. They become float32 again on loading.
        threads: threads that layers are timed with, and that the choice is made for.
        engines: names of the engines to choose from, or a single one; None means all installed ones that need
            no torch, since a bundle is meant for machines without it.
        measure: choose by measurement. Without it every candidate runs sparse on the default engine, and the same graph
            gives the same bytes.
    """

    storage: str = "float32"
    threads: int = 2
    engines: tuple[str, ...] | str | None = None
    measure: bool = True

    def __post_init__(self) -> None:
        if self.storage not in FLOAT_STORAGES:
            raise InputError(
                f"there is no storage {self.storage!r}.",
                fix=f"Choose {', '.join(FLOAT_STORAGES)}.",
                assurance=NOTHING_WRITTEN,
            )
        if type(self.threads) is not int or not 1 <= self.threads <= MOST_THREADS:
            raise InputError(
                f"threads={self.threads!r}: expected an integer from 1 to {MOST_THREADS:,}.",
                fix="",
                assurance=NOTHING_WRITTEN,
            )
        engines: Any = (self.engines,) if isinstance(self.engines, str) else self.engines
        if engines is not None:
            listed = isinstance(engines, list | tuple) and engines
            if not listed or not all(isinstance(name, str) for name in engines):
                raise InputError(
                    f"engines={engines!r} names no engines.",
                    fix="Give names, or None for all that are installed and need no torch.",
                    assurance=NOTHING_WRITTEN,
                )
            object.__setattr__(self, "engines", tuple(engines))
