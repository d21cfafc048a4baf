"""Assemble a partitioned graph into the members of a bundle: constants, dense graphs and layers, each of them once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from l0compress.errors import NOTHING_WRITTEN, InputError
from l0compress.export.partition.candidates import Candidate
from l0compress.export.partition.cut import DenseSegment, Types, cut, segment
from l0compress.export.partition.flow import Flow
from l0compress.export.session import example_sizes
from l0compress_runtime.archive import write_zip
from l0compress_runtime.coding import TensorSpec, encode, encode_ternary
from l0compress_runtime.manifest import MANIFEST, Manifest, Port, Segment, SparseStep, Step
from l0compress_runtime.parts import DEFAULT_ENGINE
from l0compress_runtime.tuning import SPLIT, WHOLE

# Sparse storage costs a byte of position per value, which must pay off.
MOST_DENSITY = 0.7
FEWEST_STORED = 256


@dataclass
class Members:
    """The parts of a bundle under construction; asking for a part again returns the same one.

    Args:
        flow: the whole graph.
        types: dtype and shape of its values.
        storage: of the float32 values of weights.
    """

    flow: Flow
    types: Types
    storage: str
    files: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)
    layers: dict[str, SparseStep] = field(default_factory=dict)
    scale_axes: dict[str, int] = field(default_factory=dict)
    _known: dict[bytes, str] = field(default_factory=dict)

    def plan(self, chosen: Sequence[Candidate], engines: Mapping[Candidate, str]) -> tuple[Step, ...]:
        """Return the graph with these candidates as layers, each on the engine named for it."""
        steps = []
        for part in cut(self.flow, self.types, chosen):
            if isinstance(part, DenseSegment):
                steps.append(Step(self.segment(part)))
            else:
                steps.append(Step(self.layer(part), engines.get(part, DEFAULT_ENGINE)))
        return tuple(steps)

    def segment(self, part: DenseSegment) -> str:
        """A dense graph; returns its name."""
        data = part.model.SerializeToString(deterministic=True)
        tensors = {name: self.tensor(name) for name in part.constants}
        if data not in self._known:
            name = f"s{len(self.segments)}"
            member = f"segments/{len(self.segments)}.onnx"
            self.files[member] = data
            self.segments[name] = Segment(member, part.inputs, part.outputs, tensors)
            self._known[data] = name
        return self._known[data]

    def layer(self, candidate: Candidate) -> str:
        """Add a sparse layer; return its name."""
        name = f"l{candidate.nodes[0]}"
        if name in self.layers:
            return name
        window = candidate.window
        step = SparseStep(
            candidate.kind,
            self._unused(candidate.name),
            candidate.inputs,
            candidate.outputs,
            self.tensor(candidate.weight),
            candidate.transposed,
            None if candidate.bias is None else self.tensor(candidate.bias),
            candidate.activation,
            self.segment(segment(self.flow, self.types, candidate.nodes)),
        )
        if candidate.flat_from is not None:
            step = replace(step, flat_from=candidate.flat_from)
        if window is not None:
            step = replace(step, **window.__dict__)
        if candidate.recurrence is not None:
            step = replace(
                step, recurrence=replace(candidate.recurrence, weight=self.tensor(candidate.recurrence.weight))
            )
        self.layers[name] = step
        return name

    def _unused(self, name: str) -> str:
        """Return the name, numbered if another layer has it: a module may be called twice, or have several weights."""
        used = {layer.name for layer in self.layers.values()}
        numbered = (f"{name} ({k})" for k in count(2))
        return next(found for found in chain((name,), numbered) if found not in used)

    def tensor(self, name: str) -> str:
        """Add a constant; return its name in the bundle.

        Raises:
            InputError: a value is beyond the range of the storage.
        """
        if name in self.tensors:
            return name
        array = self.flow.array(name)
        is_weight = bool(array.dtype == np.float32 and array.size >= FEWEST_STORED and np.isfinite(array).all())
        is_sparse = is_weight and bool(np.count_nonzero(array) <= MOST_DENSITY * array.size)
        spec, data = self._encoded(name, array, is_sparse)
        # Exact, so that what rounds the others has no say in it.
        ternary = encode_ternary(array, self._axes(name, array)) if is_weight and array.ndim > 1 else None
        if ternary is not None and len(ternary[1]) < len(data):
            spec, data = ternary
        member = f"tensors/{len(self.tensors)}.npz"
        self.files[member] = data
        self.tensors[name] = replace(spec, member=member)
        return name

    def _encoded(self, name: str, array: NDArray[Any], is_sparse: bool) -> tuple[TensorSpec, bytes]:
        axis, is_float = self.scale_axes.get(name), array.dtype == np.float32
        storage = self.storage if is_float and array.ndim > 1 and (axis is not None or self.storage != "int8") else None
        try:
            return encode(array, storage=storage or str(array.dtype), is_sparse=is_sparse, scale_axis=axis)
        except OverflowError as error:
            raise InputError(
                f"the constant {name!r} cannot be stored as {self.storage}: {error}.",
                fix="Choose bfloat16 or float32.",
                assurance=NOTHING_WRITTEN,
            ) from error

    def _axes(self, name: str, array: NDArray[Any]) -> Iterator[int]:
        """Dimensions along which a constant may have scales, those of its layer's outputs first."""
        axis = self.scale_axes.get(name)
        yield from () if axis is None else (axis,)
        yield from (dim for dim in range(array.ndim) if dim != axis)


def members_of(flow: Flow, types: Types, candidates: Sequence[Candidate], storage: str) -> tuple[Members, Manifest]:
    """Return the members of a bundle with two plans: every candidate as a layer, and the whole graph dense."""
    members = Members(flow, types, storage)
    for candidate in candidates:
        for weight, axis in candidate.scale_axes().items():
            members.scale_axes.setdefault(weight, axis)
    plans = {WHOLE: members.plan((), {})}
    if candidates:
        plans[SPLIT] = members.plan(candidates, {})
    manifest = Manifest(
        _ports(flow, "input"), _ports(flow, "output"), {}, {}, {}, plans, ((1, SPLIT if candidates else WHOLE),)
    )
    return members, completed(manifest, members)


def completed(manifest: Manifest, members: Members) -> Manifest:
    """Return the manifest with the current members."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.files.items()}
    return replace(
        manifest,
        tensors=dict(members.tensors),
        segments=dict(members.segments),
        layers=dict(members.layers),
        hashes=hashes,
    )


def bundle_bytes(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Return a bundle as one zip file: the manifest, and the members that it lists."""
    used = {name: files[name] for name in sorted(manifest.hashes)}
    return write_zip({MANIFEST: manifest.to_json().encode(), **used})


def without_unused(manifest: Manifest) -> Manifest:
    """Return the manifest without what none of its plans needs."""
    steps = [step for plan in manifest.plans.values() for step in plan]
    layers = {step.part: manifest.layers[step.part] for step in steps if step.engine is not None}
    names = {step.part for step in steps if step.engine is None} | {layer.dense for layer in layers.values()}
    segments = {name: segment for name, segment in manifest.segments.items() if name in names}
    read = {tensor for segment in segments.values() for tensor in segment.tensors.values()}
    read |= {name for layer in layers.values() for name in layer.tensors}
    tensors = {name: spec for name, spec in manifest.tensors.items() if name in read}
    kept = {part.member for part in (*segments.values(), *tensors.values())}
    hashes = {name: digest for name, digest in manifest.hashes.items() if name in kept}
    return replace(manifest, layers=layers, segments=segments, tensors=tensors, hashes=hashes)


def _ports(flow: Flow, side: str) -> tuple[Port, ...]:
    values = flow.model.graph.input if side == "input" else flow.model.graph.output
    properties = {entry.key: entry.value for entry in flow.model.metadata_props}
    examples = example_sizes(properties) if side == "input" else {}
    ports = []
    for value in values:
        kind = value.type.tensor_type
        dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"size_{position}"
            for position, dim in enumerate(kind.shape.dim)
        )
        ports.append(Port(value.name, dtype, shape, examples.get(value.name, ())))
    return tuple(ports)
