"""Products with a constant that may run sparse, and what was found of them in a graph."""

from __future__ import annotations

from dataclasses import dataclass, field

from l0compress_runtime.manifest import Recurrence


@dataclass(frozen=True)
class Candidate:
    """A product that may run sparse.

    Attributes:
        kind: ``linear``, ``conv``, ``embedding`` or ``recurrent``.
        name: the layer's name in the user's model, as far as the graph tells.
        nodes: the nodes that it replaces.
        inputs: the values that it reads: one, plus the states of a recurrent node.
        outputs: the values that it produces: one, or those of a recurrent node.
        weight: its constant.
        transposed: the outputs of the layer are the columns of the constant, not its rows.
        bias: a constant of one value per output, or None.
        activation: what is applied last, or None.
        zeros: share of exact zeros in the weight, for a recurrent node in both weights together.
        window: for a convolution: kernel, stride, padding, dilation and groups.
        recurrence: for a recurrent node, with its second weight by its name in the graph.
        flat_from: the dimension from which the input is flattened; None leaves it as it is.
    """

    kind: str
    name: str
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: str
    transposed: bool = False
    bias: str | None = None
    activation: str | None = None
    zeros: float = 0.0
    window: Window | None = None
    recurrence: Recurrence | None = None
    flat_from: int | None = None

    def scale_axes(self) -> dict[str, int]:
        """Return, for each of its constants that may be stored with a scale per output, the output dimension."""
        if self.recurrence is not None:
            return {self.weight: 1, self.recurrence.weight: 1}
        return {self.weight: int(self.transposed)}


@dataclass(frozen=True)
class Window:
    """How a convolution moves; see :class:`l0compress_runtime.layers.SparseConv`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Found:
    """The result of :func:`find_candidates`: candidates, and the reasons for sparse constants that are not."""

    candidates: tuple[Candidate, ...]
    reasons: dict[str, str] = field(default_factory=dict)

    def refused(self, reason: str) -> Found:
        """Return a result without candidates, for this reason."""
        return Found((), self.reasons | {candidate.name: reason for candidate in self.candidates})
