"""Export to a bundle: sparse layers as CSR, the rest as ONNX.

A bundle runs without torch and is no slower than the dense model.

requires: a captured graph that exports to ONNX.
ensures:  the bundle, loaded again, computes what the reference computes; the same graph and the same choices give the
          same bytes (measured times vary from run to run, and the choices with them).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from l0compress.errors import RunError, SurgeryError
from l0compress.export.assemble import bundle_bytes, members_of, without_unused
from l0compress.export.bundle_session import BundleSession
from l0compress.export.bundle_settings import BundleSettings
from l0compress.export.choosing import chosen_plans
from l0compress.export.files import Exported, size_on_disk, staged, write_new
from l0compress.export.onnx import export_onnx
from l0compress.export.partition.cut import Types, types_of
from l0compress.export.partition.finding import find_candidates
from l0compress.export.partition.flow import Flow, flow_of
from l0compress.export.partition.initializers import fold_constants
from l0compress.export.partition.products import FEWEST_ELEMENTS, FEWEST_ZEROS
from l0compress.export.partition.recurrent_nodes import without_zero_states
from l0compress.export.session import named_feeds
from l0compress.export.whys import ternary_words, whys
from l0compress.graph.capture import CapturedGraph
from l0compress.progress import Stages
from l0compress.verification.calls import (
    Call,
    checked_batch_sizes,
    example_call,
    example_calls,
    has_free_batch,
    sized_example,
)
from l0compress.verification.comparison import check_tolerance
from l0compress.verification.equality import Model, verify
from l0compress_runtime.archive import FormatError
from l0compress_runtime.engines import find
from l0compress_runtime.manifest import Manifest
from l0compress_runtime.protobuf import check_model
from l0compress_runtime.segments import MOST_MODEL_BYTES
from l0compress_runtime.sessions import NATIVE_ERRORS, first_line, open_session

BATCH_SIZES = (1, 8, 64)
WITH_TORCH = ("torch",)


@dataclass(frozen=True)
class ExportedBundle(Exported):
    """A bundle that was written.

    Attributes:
        manifest: its description of itself: layers, choices, timings.
        onnx_bytes: size of the same model as an ONNX file.
    """

    manifest: Manifest
    onnx_bytes: int

    def lines(self) -> tuple[str, ...]:
        """Return what was checked, in words."""
        lines = (*super().lines(), f"the same model as an ONNX file: {self.onnx_bytes:,} bytes")
        if self.manifest.disabled_optimizers:
            names = ", ".join(self.manifest.disabled_optimizers)
            lines = (*lines, f"dense graphs run without ONNX Runtime's {names}, which makes them slower here")
        ternary = ternary_words(self.manifest)
        if ternary is not None:
            lines = (*lines, ternary)
        if self.manifest.layers:
            return lines
        if self.manifest.whys:
            return (*lines, *(f"{name}: {why}" for name, why in self.manifest.whys.items()))
        return (
            *lines,
            f"nothing runs sparse, because no float32 weight with at least {FEWEST_ELEMENTS} elements has "
            f"{FEWEST_ZEROS:.0%} zeros: finetune --granularity weights creates them",
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``."""
        return {
            **super().to_json(),
            "onnx_bytes": self.onnx_bytes,
            "layers": dict(self.manifest.whys),
            "ternary_weights": sorted(self.manifest.ternary),
            "choices": [{"batch_size": size, "plan": plan} for size, plan in self.manifest.choices],
            "layer_timings": [
                {"layer": self.manifest.layers[t.layer].name, "batch_size": t.batch_size, "median_ms": t.median_ms}
                for t in self.manifest.layer_timings
            ],
            "plan_timings": [timing.__dict__ for timing in self.manifest.plan_timings],
        }


def export_bundle(
    graph: CapturedGraph,
    path: str | Path,
    *,
    reference: Model | None = None,
    tolerance: float | None = None,
    batch_sizes: Sequence[int] | int = BATCH_SIZES,
    settings: BundleSettings | None = None,
) -> ExportedBundle:
    """Write ``graph`` as a bundle, if the bundle computes what the reference computes.

    Products with a constant of which 60 % or more are exact zeros are timed dense and on every engine at each batch
    size; the fastest form is kept, and whatever is not faster in the end than the dense model is dense. All sparse
    constants are stored without their zeros, whichever way they run.

    Args:
        graph: the model; dimensions that are free in it stay free.
        path: the file to write, by convention ``*.l0c``.
        reference: what the bundle must agree with; by default the graph itself.
        tolerance: as in :func:`l0compress.verify`; larger by default where weights are rounded for storage.
        batch_sizes: what the choice is made for. A run takes the choice of the nearest one. The bundle is checked at
            the largest of them too.
        settings: storage, threads, engines.

    Raises:
        NotEqualError: the bundle does not compute what the reference computes.
        SurgeryError: the graph cannot be converted to ONNX, or ONNX Runtime cannot run the result.
        InputError: no such storage or engine, or a weight beyond the range of the storage.
        RunError: the path cannot be written to.

    Example:
        >>> import torch, l0compress as l0
        >>> layer = torch.nn.Linear(64, 64)
        >>> keep = torch.rand(64, 64) < 0.05
        >>> layer.weight.data *= keep
        >>> graph = l0.capture(layer, (torch.randn(2, 64),))
        >>> path = Path(tempfile.mkdtemp(), "model.l0c")
        >>> exported = export_bundle(graph, path, settings=BundleSettings(measure=False))
        >>> exported.size_bytes < exported.onnx_bytes / 4
        True
    """
    check_tolerance(tolerance)
    settings = settings or BundleSettings()
    sizes = checked_batch_sizes(batch_sizes)
    engines = [engine.name for engine in find(settings.engines) if settings.engines or engine.name not in WITH_TORCH]
    destination = Path(path)
    calls, stages = example_calls(graph), Stages([3, 6, 1])
    with staged(destination) as staging:
        with _refusals(), stages.stage("converting"):
            model, onnx_bytes = _dense_model(graph)
            flow = flow_of(model)
            types, found = _types(flow, calls), find_candidates(flow)
        if not _all_tensors(flow, types):
            found = found.refused("the graph has values that are not tensors, such as lists, and is not cut")
        candidates = found.candidates
        members, manifest = members_of(flow, types, candidates, settings.storage)
        if settings.measure and (candidates or _has_norms(flow)):
            feeds = {size: _feeds(flow, call) for size, call in _calls(graph, sizes).items()}
            with stages.stage("timing"):
                manifest = chosen_plans(
                    manifest, members, candidates, feeds=feeds, engines=engines, threads=settings.threads
                )
        manifest = without_unused(replace(manifest, whys=whys(manifest, found.reasons), about=_about(settings)))
        write_new(staging, bundle_bytes(manifest, members.files), for_=destination)
        session = _read_again(staging, destination, settings.threads)
        allowed = session.tolerance if tolerance is None else tolerance
        checked = (*calls, *sized_example(graph, max(sizes)))
        with stages.stage("checking"):
            equality = verify(session, reference or graph, inputs=checked, tolerance=allowed)
        size_bytes = size_on_disk(staging)
    return ExportedBundle(destination, size_bytes, equality, manifest, onnx_bytes)


def _read_again(staging: Path, destination: Path, threads: int) -> BundleSession:
    try:
        return BundleSession(staging, threads=threads)
    except RunError as error:
        reason = first_line(error.__cause__ or error)
        raise SurgeryError(
            f"the bundle for {destination} cannot be read back: {reason}.",
            fix="Export it as onnx, and please report the model.",
        ) from error


def _dense_model(graph: CapturedGraph) -> tuple[onnx.ModelProto, int]:
    """Return the graph as ONNX with folded constants, and the size of its file."""
    with tempfile.TemporaryDirectory() as folder:
        exported = export_onnx(graph, Path(folder, "model.onnx"))
        model = onnx.load(exported.path)
    if model.ByteSize() > MOST_MODEL_BYTES:
        raise SurgeryError(
            f"the model takes {model.ByteSize():,} bytes as ONNX, but only {MOST_MODEL_BYTES:,} fit into a bundle.",
            fix="Export it as onnx.",
        )
    model = without_zero_states(fold_constants(model))
    try:
        check_model(model.SerializeToString())
    except FormatError as error:
        raise SurgeryError(f"the converted graph {error}.", fix="Export it as onnx.") from error
    return model, exported.size_bytes


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what ONNX Runtime raises on a partitioned graph into our own error."""
    try:
        yield
    except NATIVE_ERRORS as error:
        raise SurgeryError(
            f"ONNX Runtime cannot run the graph value by value, as a bundle needs it: {first_line(error)}.",
            fix="Export it as onnx.",
        ) from error


def _types(flow: Flow, calls: Sequence[Call]) -> Types:
    """Return dtype and shape of every value, by running the graph with all of them as outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(flow.model)
    known = {value.name for value in model.graph.output}
    names = [name for name in flow.makers if name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(model.SerializeToString())
    every = [output.name for output in session.get_outputs()]
    examples = []
    for call in calls:
        values = dict(zip(every, session.run(every, dict(_feeds(flow, call))), strict=True))
        examples.append({name: value for name, value in values.items() if isinstance(value, np.ndarray)})
    return types_of(flow.model, examples)


def _all_tensors(flow: Flow, types: Types) -> bool:
    """Return whether every value may cross a cut; sequences and optional values may not."""
    return all(name in types.values for name in flow.makers)


def _has_norms(flow: Flow) -> bool:
    return any(node.op_type == "LayerNormalization" for node in flow.nodes)


def _feeds(flow: Flow, call: Call) -> dict[str, NDArray[np.generic]]:
    names = [value.name for value in flow.model.graph.input]
    tensors: dict[str, Tensor] = named_feeds(names, call.args, call.kwargs, source=Path("the model"))
    return {name: tensor.numpy(force=True) for name, tensor in tensors.items()}


def _calls(graph: CapturedGraph, batch_sizes: Sequence[int]) -> dict[int, Call]:
    """Return a call for each batch size; only the example's if the batch is fixed."""
    if not has_free_batch(graph):
        example = example_call(graph)
        return {example.batch_size: example}
    sizes = sorted(set(batch_sizes))
    return dict(zip(sizes, example_calls(graph, sizes)[1:], strict=True))


def _about(settings: BundleSettings) -> dict[str, str]:
    return {
        "producer": f"l0compress {version('l0compress')}",
        "storage": settings.storage,
        "threads": str(settings.threads),
    }
