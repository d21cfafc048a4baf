"""The manifest: what a bundle holds and how its parts make a model.

A *tensor* is a constant. A *segment* is an ONNX graph without its larger constants, which are named beside it. A
*layer* is a product with a sparse constant; it names the segment that computes the same densely. A *plan* is a way to
run the model: segments, and layers on an engine each, in an order in which every value is there when it is read. There
are several plans of one model, and *choices* says which is the fastest at which batch size.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from l0compress_runtime.coding import TensorSpec

# Version 3 has layers that flatten their input and optimizers that are disabled. All of version 2 means the same in it.
FORMAT, VERSION, OLDEST = "l0compress-bundle", 3, 2
MANIFEST = "manifest.json"
DENSE = "dense"


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Attributes:
        name: what the model calls it.
        dtype: as numpy calls it.
        shape: a size is a number where it is fixed, and a name where it is free.
        example: sizes that the model was captured with; empty where nobody has said them.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    example: tuple[int, ...] = ()

    def described(self) -> str:
        """Dtype and shape in words.

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
        outputs: the values that it makes.
        tensors: its constants, from their name in the graph to that of the tensor.
    """

    member: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, str]


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent layer is beside its first weight; see :class:`l0compress_runtime.layers.SparseRecurrent`.

    Attributes:
        cell: one of :data:`l0compress_runtime.layers.GATES`.
        direction: one of :data:`l0compress_runtime.layers.DIRECTIONS`.
        weight: the tensor that the state is multiplied with, (directions, gates * hidden, hidden).
        states: for each state of the cell which input of the layer it begins with; 0, which is the sequence, for zeros.
        makes: what each output of the layer is: 0 all hidden states, 1 the last of them, 2 the last cell state.
    """

    cell: str
    direction: str
    weight: str
    states: tuple[int, ...]
    makes: tuple[int, ...]


@dataclass(frozen=True)
class SparseStep:
    """A layer: which values it reads, which ones it makes, and with which tensors.

    Attributes:
        kind: ``linear``, ``conv``, ``embedding`` or ``recurrent``.
        name: what the layer is called in the model.
        inputs: the values that it reads: one, and after it the states that a recurrent layer begins with.
        outputs: the values that it makes: one, or several of a recurrent layer.
        weight: its tensor; a matrix with a row an output, or, where ``transposed``, a column. Of a recurrent layer
            that of the input, (directions, gates * hidden, in).
        transposed: see ``weight``.
        bias: its tensor, or None.
        activation: one of :data:`l0compress_runtime.layers.ACTIVATIONS`, or None.
        dense: the segment that computes the same.
        kernel: of a convolution, as are the others: see :class:`l0compress_runtime.layers.SparseConv`.
        recurrence: of a recurrent layer, and None otherwise.
        flat_from: of a linear layer: the dimensions of its input from this one on are taken as one; None leaves them.
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
        """The tensors that are multiplied with."""
        return (self.weight,) if self.recurrence is None else (self.weight, self.recurrence.weight)

    @property
    def tensors(self) -> tuple[str, ...]:
        """All tensors that it reads."""
        return self.weights if self.bias is None else (*self.weights, self.bias)


@dataclass(frozen=True)
class Step:
    """One step of a plan: a segment (``engine`` is None), or a layer on an engine, ``dense`` being one."""

    part: str
    engine: str | None = None


@dataclass(frozen=True)
class LayerTiming:
    """Median milliseconds of one layer at one batch size, by engine, ``dense`` being one."""

    layer: str
    batch_size: int
    median_ms: dict[str, float]


@dataclass(frozen=True)
class PlanTiming:
    """Median milliseconds of the whole model at one batch size: one dense ONNX graph, and the plan that was chosen."""

    batch_size: int
    dense_ms: float
    chosen_ms: float


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says about itself.

    Attributes:
        inputs: the model's inputs, in order.
        outputs: the model's outputs, in order.
        tensors: by name.
        segments: by name.
        layers: by name.
        plans: by name.
        choices: a plan for each batch size that was considered, smallest first.
        layer_timings: empty where nothing was measured.
        plan_timings: empty where nothing was measured.
        whys: for every constant with enough zeros, how it runs and why.
        about: free text: who wrote it, with which threads.
        hashes: SHA-256 of every member but the manifest, in hexadecimal.
        disabled_optimizers: of ONNX Runtime, which dense graphs go without, since what they make is slower.
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

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        value = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
