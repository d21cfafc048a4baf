"""Engines: several ways to run one sparse layer, behind one interface, so that measurements can choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from l0compress_runtime.engines.numba_engine import NumbaEngine
from l0compress_runtime.engines.scipy_engine import ScipyEngine
from l0compress_runtime.engines.torch_engine import TorchEngine
from l0compress_runtime.errors import NOTHING_RUN, InputError
from l0compress_runtime.layers import Layer

# From an array to an array; for a recurrent layer from several to a tuple.
Kernel = Callable[..., Any]


class Engine(Protocol):
    """A way to run sparse layers.

    requires: a layer that ``supports`` accepts, and input in the layer's shape and dtype.
    ensures:  a kernel may be called from several threads at once, gives the same bits for the same input every time,
              keeps no reference to its input and returns an array that the caller owns.
    """

    @property
    def name(self) -> str:
        """The engine's name in a manifest and in options."""
        ...

    def available(self) -> bool:
        """Return whether the packages that it needs are installed, without importing anything."""
        ...

    def supports(self, layer: Layer) -> bool:
        """Return whether it can run the layer."""
        ...

    def compile(self, layer: Layer, *, threads: int) -> Kernel:
        """Return a function from the layer's input to its output that uses at most this many threads.

        Linear takes float32 (..., in) and returns (..., out); a convolution takes (n, channels, *spatial); an embedding
        takes integers of any shape and adds one dimension. A recurrent layer takes (length, batch, in) and its initial
        states, (directions, batch, hidden) or None for zeros, and returns all hidden states, (length, directions,
        batch, hidden), the last of them, and an LSTM's last cell state. The kernel raises InputError for anything else.
        """
        ...


ENGINES: tuple[Engine, ...] = (ScipyEngine(), NumbaEngine(), TorchEngine())


def find(names: Sequence[str] | str | None = None) -> tuple[Engine, ...]:
    """Return the engines of these names, or of this one, or all that are available here, the default first.

    Raises:
        InputError: there is no engine of that name, or it is not installed.

    Example:
        >>> [engine.name for engine in find(["scipy"])]
        ['scipy']
    """
    if names is None:
        return tuple(engine for engine in ENGINES if engine.available())
    names = (names,) if isinstance(names, str) else names
    known = {engine.name: engine for engine in ENGINES}
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise InputError(
                f"there is no engine {name!r}.", fix=f"Choose from {', '.join(known)}.", assurance=NOTHING_RUN
            )
        if not known[name].available():
            raise InputError(
                f"the engine {name!r} needs a package that is not installed.", fix="Install it.", assurance=NOTHING_RUN
            )
    return tuple(known[name] for name in names)
