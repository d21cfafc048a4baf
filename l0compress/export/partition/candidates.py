"""A product with a constant that may run sparse, and what was found of them in a graph."""

from __future__ import annotations

from dataclasses import dataclass, field

from l0compress_runtime.manifest import Recurrence


@dataclass(frozen=True)
class Candidate:
    """A product that may run sparse.

    Attributes:
        kind: ``linear``, ``conv``, ``embedding`` or ``recurrent``.
        name: what the layer is called in the user's model, as far as the graph tells.
        nodes: the nodes that it stands for.
        inputs: the values that it reads: one, but for the states of a recurrent node.
        outputs: the values that it makes: one, but for those of a recurrent node.
        weight: its constant.
        transposed: the outputs of the layer are the columns of the constant, not its rows.
        bias: a constant of one value an output, or None.
        activation: what is applied last, or None.
        zeros: share of exact zeros in the weight, of a recurrent node in both weights together.
        window: of a convolution: kernel, stride, padding, dilation and groups.
        recurrence: of a recurrent node, with its second weight by its name in the graph.
        flat_from: the dimensions of the input from this one on are taken as one; None leaves it as it is.
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
        """For each of its constants that may be stored with a scale an output, the dimension of the outputs."""
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
    """What :func:`find_candidates` found: candidates, and for sparse constants that are none, the reason."""

    candidates: tuple[Candidate, ...]
    reasons: dict[str, str] = field(default_factory=dict)

    def refused(self, reason: str) -> Found:
        """No candidates, for this reason."""
        return Found((), self.reasons | {candidate.name: reason for candidate in self.candidates})
