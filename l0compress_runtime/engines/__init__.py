"""Engines: several ways to run one sparse layer, behind one interface, so that a measurement can choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from l0compress_runtime.engines.numba_engine import NumbaEngine
from l0compress_runtime.engines.scipy_engine import ScipyEngine
from l0compress_runtime.engines.torch_engine import TorchEngine
from l0compress_runtime.errors import InputError
from l0compress_runtime.layers import Layer

# From an array to an array; of a recurrent layer from several to a tuple.
Kernel = Callable[..., Any]


class Engine(Protocol):
    """A way to run sparse layers.

    requires: a layer that ``supports`` says yes to, and input in the shape and dtype that the layer names.
    ensures:  a kernel may be called from several threads at once, gives the same bits for the same input every time,
              keeps no reference to its input and returns an array that is the caller's own.
    """

    @property
    def name(self) -> str:
        """What the engine is called in a manifest and in options."""
        ...

    def available(self) -> bool:
        """Whether the packages that it needs are installed; nothing is imported to find out."""
        ...

    def supports(self, layer: Layer) -> bool:
        """Whether it can run the layer."""
        ...

    def compile(self, layer: Layer, *, threads: int) -> Kernel:
        """A function from the layer's input to its output that uses at most so many threads.

        Linear takes float32 (..., in) and gives (..., out); a convolution (n, channels, *spatial); an embedding takes
        integers of any shape and gives one dimension more. A recurrent layer takes (length, batch, in) and the states
        that it begins with, (directions, batch, hidden) or None for zeros, and gives all hidden states, (length,
        directions, batch, hidden), the last of them, and an LSTM's last cell state. The kernel raises InputError for
        anything else.
        """
        ...


ENGINES: tuple[Engine, ...] = (ScipyEngine(), NumbaEngine(), TorchEngine())


def find(names: Sequence[str] | str | None = None) -> tuple[Engine, ...]:
    """The engines of these names, or of this one, or all that are available here, the default first.

    Raises:
        InputError: no engine is called so, or what it needs is not installed.

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
            raise InputError(f"there is no engine {name!r}. Nothing was run. Choose from {', '.join(known)}.")
        if not known[name].available():
            raise InputError(f"the engine {name!r} needs a package that is not installed. Nothing was run. Install it.")
    return tuple(known[name] for name in names)
