"""The manifest: what a bundle contains and how its parts make up a model.

A *tensor* is a constant. A *segment* is an ONNX graph without its larger constants, which are listed separately. A
*layer* is a product with a sparse constant; it names the segment that computes the same densely. A *plan* is a way to
run the model: segments, and layers each on an engine, in an order in which every value exists when it is read. A model
has several plans, and *choices* says which is the fastest at which batch size.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from l0compress_runtime.coding import TensorSpec
from l0compress_runtime.ternary import TERNARY

# Version 3 adds layers that flatten their input, and disabled optimizers, version 4 ternary values. All of an earlier
# version means the same in a later one.
FORMAT, VERSION, OLDEST = "l0compress-bundle", 4, 2
WITHOUT_TERNARY = 3
MANIFEST = "manifest.json"
DENSE = "dense"


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Attributes:
        name: its name in the model.
        dtype: its name in numpy.
        shape: a number for each fixed size, a name for each free one.
        example: sizes that the model was captured with; empty if unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    example: tuple[int, ...] = ()

    def described(self) -> str:
        """Return dtype and shape in words.

        Example:
            >>> Port("image", "float32", ("batch", 3, 8)).described()
            'float32 (batch, 3, 8)'
        """
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Segment:
    """An ONNX graph.

    Attributes:
        member: its file in the bundle.
        inputs: the values that it reads.
        outputs: the values that it produces.
        tensors: its constants, from their name in the graph to that of the tensor.
    """

    member: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, str]


@dataclass(frozen=True)
class Recurrence:
    """What defines a recurrent layer besides its first weight; see :class:`l0compress_runtime.layers.SparseRecurrent`.

    Attributes:
        cell: one of :data:`l0compress_runtime.layers.GATES`.
        direction: one of :data:`l0compress_runtime.layers.DIRECTIONS`.
        weight: the tensor that multiplies the state, (directions, gates * hidden, hidden).
        states: for each state of the cell the layer input that it starts from; 0, which is the sequence, means zeros.
        makes: what each output of the layer is: 0 all hidden states, 1 the last of them, 2 the last cell state.
    """

    cell: str
    direction: str
    weight: str
    states: tuple[int, ...]
    makes: tuple[int, ...]


@dataclass(frozen=True)
class SparseStep:
    """A layer: the values that it reads and produces, and its tensors.

    Attributes:
        kind: ``linear``, ``conv``, ``embedding`` or ``recurrent``.
        name: the layer's name in the model.
        inputs: the values that it reads: one, followed by the initial states of a recurrent layer.
        outputs: the values that it produces: one, or several for a recurrent layer.
        weight: its tensor; a matrix with a row per output, or, if ``transposed``, a column. For a recurrent layer
            that of the input, (directions, gates * hidden, in).
        transposed: see ``weight``.
        bias: its tensor, or None.
        activation: one of :data:`l0compress_runtime.layers.ACTIVATIONS`, or None.
        dense: the segment that computes the same.
        kernel: for a convolution, like the others: see :class:`l0compress_runtime.layers.SparseConv`.
        recurrence: for a recurrent layer, and None otherwise.
        flat_from: for a linear layer: the dimension from which its input is flattened; None leaves it as it is.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: str
    transposed: bool
    bias: str | None
    activation: str | None
    dense: str
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    recurrence: Recurrence | None = None
    flat_from: int | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """The tensors that multiply."""
        return (self.weight,) if self.recurrence is None else (self.weight, self.recurrence.weight)

    @property
    def tensors(self) -> tuple[str, ...]:
        """All tensors that it reads."""
        return self.weights if self.bias is None else (*self.weights, self.bias)


@dataclass(frozen=True)
class Step:
    """One step of a plan: a segment (``engine`` is None), or a layer on an engine; ``dense`` is one."""

    part: str
    engine: str | None = None


@dataclass(frozen=True)
class LayerTiming:
    """Median milliseconds of one layer at one batch size, by engine; ``dense`` is one."""

    layer: str
    batch_size: int
    median_ms: dict[str, float]


@dataclass(frozen=True)
class PlanTiming:
    """Median milliseconds of the whole model at one batch size: as one dense ONNX graph, and with the chosen plan."""

    batch_size: int
    dense_ms: float
    chosen_ms: float


@dataclass(frozen=True)
class Manifest:
    """A bundle's complete description of itself.

    Attributes:
        inputs: the model's inputs, in order.
        outputs: the model's outputs, in order.
        tensors: by name.
        segments: by name.
        layers: by name.
        plans: by name.
        choices: a plan for each batch size that was considered, smallest first.
        layer_timings: empty if nothing was measured.
        plan_timings: empty if nothing was measured.
        whys: for every constant with enough zeros, how it runs and why.
        about: free text: who wrote it, with which threads.
        hashes: SHA-256 of every member except the manifest, in hexadecimal.
        disabled_optimizers: ONNX Runtime optimizers disabled in dense graphs, because their result is slower.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tensors: dict[str, TensorSpec]
    segments: dict[str, Segment]
    layers: dict[str, SparseStep]
    plans: dict[str, tuple[Step, ...]]
    choices: tuple[tuple[int, str], ...]
    layer_timings: tuple[LayerTiming, ...] = ()
    plan_timings: tuple[PlanTiming, ...] = ()
    whys: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()

    @property
    def ternary(self) -> dict[str, TensorSpec]:
        """The tensors that are stored as signs and scales."""
        return {name: spec for name, spec in self.tensors.items() if spec.storage == TERNARY}

    def to_json(self) -> str:
        """Return the text of ``manifest.json``, of the earliest version that has all that is in it."""
        version = VERSION if self.ternary else WITHOUT_TERNARY
        value = {"format": FORMAT, "version": version, **asdict(self)}
        return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
