"""The parts of a bundle as functions: a constant, segment or layer is read and checked when a plan needs it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from numpy.typing import NDArray

from l0compress_runtime.archive import Files, FormatError, LimitError
from l0compress_runtime.coding import Stored, TensorSpec, decode
from l0compress_runtime.engines import ENGINES, Engine, Kernel
from l0compress_runtime.errors import InputError
from l0compress_runtime.layers import (
    Layer,
    SparseConv,
    SparseEmbedding,
    SparseLinear,
    SparseRecurrent,
    matrix_shape,
)
from l0compress_runtime.manifest import DENSE, Manifest, Recurrence, SparseStep, Step
from l0compress_runtime.protobuf import operators_of
from l0compress_runtime.segments import Runner, open_segment

Array = NDArray[Any]

DEFAULT_ENGINE = "scipy"
# int32 index and float32 value of CSR, and the int64 position that they are made from.
_BYTES_A_NONZERO = 24


class Parts:
    """The building blocks of plans; a part that several plans share is built once.

    Args:
        files: the members of the bundle.
        manifest: their description.
        threads: threads that a segment or a layer uses; None leaves the choice to ONNX Runtime, and gives layers 1.
        limit_bytes: the most memory that constants may take.
    """

    def __init__(self, files: Files, manifest: Manifest, *, threads: int | None, limit_bytes: int) -> None:
        self.files = files
        self.manifest = manifest
        self.threads = threads
        self.limit_bytes = limit_bytes
        self._segments: dict[str, Runner] = {}
        self._layers: dict[tuple[SparseStep, str], tuple[str, Runner]] = {}
        self._spent: dict[tuple[str, str], int] = {}

    def disabling(self, optimizers: tuple[str, ...]) -> Parts:
        """Return the same parts with exactly these ONNX Runtime optimizers disabled in dense graphs."""
        manifest = replace(self.manifest, disabled_optimizers=optimizers)
        return Parts(self.files, manifest, threads=self.threads, limit_bytes=self.limit_bytes)

    def operators(self, plan: tuple[Step, ...]) -> set[str]:
        """Return the operator types in the dense graphs of a plan.

        Raises:
            FormatError: a graph is damaged.
        """
        members = [self.manifest.segments[step.part].member for step in plan if step.engine is None]
        return {operator for member in members for operator in operators_of(self._member(member))}

    def run_of(self, step: Step) -> Runner:
        """The function of one step.

        Raises:
            FormatError: a part is damaged, is not what the manifest says, or needs more memory than allowed.
        """
        if step.engine is None:
            return self._segment(step.part)
        if step.engine == DENSE:
            return self._segment(self.manifest.layers[step.part].dense)
        return self._kernel(step.part, step.engine)[1]

    def engine_of(self, step: Step) -> str | None:
        """Return what a step runs on: its engine, or the default one if that engine does not support the layer.

        Raises:
            FormatError: as of :meth:`run_of`.
        """
        if step.engine is None or step.engine == DENSE:
            return step.engine
        return self._kernel(step.part, step.engine)[0]

    def layer(self, name: str) -> Layer:
        """Return a sparse layer as a value.

        Raises:
            FormatError: its tensors do not make up such a layer.
        """
        step = self.manifest.layers[name]
        row_dims = 1 if step.recurrence is None else 2
        for weight in step.weights:
            shape = self.manifest.tensors[weight].shape
            if not _fits(step, shape):
                raise FormatError(f"layers.{name} has a weight of shape {shape}, which no such {step.kind} layer has")
        try:
            stored = [self._stored(weight, row_dims) for weight in step.weights]
            return _layer_of(step, stored, self._bias(step))
        except InputError as error:
            raise FormatError(f"layers.{name}: {error}") from error

    def supported(self, name: str, engines: Iterable[Engine]) -> list[str]:
        """Return which of the engines can run a layer."""
        layer = self.layer(name)
        return [engine.name for engine in engines if engine.supports(layer)]

    def _kernel(self, name: str, engine: str) -> tuple[str, Runner]:
        # Steps that apply one layer several times, as in a loop that was unrolled, share its kernel.
        layer = replace(self.manifest.layers[name], name="", inputs=(), outputs=(), dense="")
        if (layer, engine) not in self._layers:
            self._layers[layer, engine] = self._compiled(name, engine)
        return self._layers[layer, engine]

    def _compiled(self, name: str, engine_name: str) -> tuple[str, Runner]:
        engine = {engine.name: engine for engine in ENGINES}[engine_name]
        layer = self.layer(name)
        if not engine.supports(layer):
            return self._kernel(name, DEFAULT_ENGINE)
        kernel = engine.compile(layer, threads=self.threads or 1)
        step = self.manifest.layers[name]
        if step.recurrence is not None:
            return engine_name, partial(_run_recurrent, kernel, step.recurrence)
        if step.flat_from is not None:
            return engine_name, partial(_run_flattened, kernel, step.flat_from, matrix_shape(layer.weight)[1])
        return engine_name, lambda arrays: (kernel(arrays[0]),)

    def _segment(self, name: str) -> Runner:
        if name not in self._segments:
            segment = self.manifest.segments[name]
            tensors = {inner: self._dense(tensor) for inner, tensor in segment.tensors.items()}
            try:
                self._segments[name] = open_segment(
                    segment,
                    self._member(segment.member),
                    tensors,
                    threads=self.threads,
                    disabled=self.manifest.disabled_optimizers,
                )
            except FormatError as error:
                raise error.within(segment.member) from error
        return self._segments[name]

    def _bias(self, step: SparseStep) -> Array | None:
        return None if step.bias is None else self._dense(step.bias).reshape(-1)

    def _dense(self, tensor: str) -> Array:
        spec = self.manifest.tensors[tensor]
        self._spend("dense", tensor, spec.dense_bytes)
        return self._decoded(spec).dense()

    def _stored(self, tensor: str, row_dims: int) -> Stored:
        spec = self.manifest.tensors[tensor]
        rows, columns = prod(spec.shape[:row_dims]), prod(spec.shape[row_dims:])
        if max(rows, columns) >= 2**31:
            raise FormatError(f"tensors.{tensor} of shape {spec.shape} is too large for a layer")
        nonzeros = spec.size if spec.nonzeros is None else spec.nonzeros
        self._spend("sparse", tensor, 8 * (rows + columns) + _BYTES_A_NONZERO * nonzeros)
        return self._decoded(spec)

    def _spend(self, form: str, tensor: str, num_bytes: int) -> None:
        self._spent[form, tensor] = num_bytes
        total = sum(self._spent.values())
        if total > self.limit_bytes:
            raise LimitError(f"needs {total:,} bytes for its constants, but limit_bytes allows {self.limit_bytes:,}")

    def _decoded(self, spec: TensorSpec) -> Stored:
        data = self._member(spec.member)
        try:
            return decode(spec, data, limit_bytes=self.limit_bytes)
        except FormatError as error:
            raise error.within(spec.member) from error

    def _member(self, name: str) -> bytes:
        data = self.files.read(name)
        if hashlib.sha256(data).hexdigest() != self.manifest.hashes.get(name):
            raise FormatError(f"{name} is damaged: its SHA-256 is not that of the manifest")
        return data


def _fits(step: SparseStep, shape: tuple[int, ...]) -> bool:
    """Return whether a weight of this shape has the right number of dimensions; the layer checks their sizes."""
    if step.recurrence is None:
        return len(shape) >= 2 and shape[2:] == step.kernel
    return len(shape) == 3 and shape[0] == 1 + (step.recurrence.direction == "bidirectional")


def _run_recurrent(kernel: Kernel, recurrence: Recurrence, arrays: Sequence[Array]) -> Sequence[Array]:
    made = kernel(arrays[0], *(arrays[at] if at else None for at in recurrence.states))
    return [made[at] for at in recurrence.makes]


def _run_flattened(kernel: Kernel, flat_from: int, columns: int, arrays: Sequence[Array]) -> Sequence[Array]:
    x = arrays[0]
    kept, rest = x.shape[:flat_from], x.shape[flat_from:]
    # Without samples any size may occur: ONNX Runtime's mean over no images keeps the sizes that it should have summed.
    return (kernel(x.reshape(*kept, columns if 0 in kept else prod(rest))),)


def _layer_of(step: SparseStep, stored: Sequence[Stored], bias: Array | None) -> Layer:
    if step.recurrence is not None:
        (weight, scale), (recurrent, recurrent_scale) = (each.csr(row_dims=2) for each in stored)
        recurrence = step.recurrence
        return SparseRecurrent(recurrence.cell, recurrence.direction, weight, recurrent, bias, scale, recurrent_scale)
    weight, scale = stored[0].csr(transposed=step.transposed)
    if step.kind == "embedding":
        return SparseEmbedding(weight, scale)
    if step.kind == "linear":
        return SparseLinear(weight, bias, step.activation, scale)
    return SparseConv(
        weight, step.kernel, step.stride, step.padding, step.dilation, step.groups, bias, step.activation, scale
    )
