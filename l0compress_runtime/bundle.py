"""A compressed model that runs on numpy, scipy and onnxruntime.

::

    model = l0compress_runtime.load("model.l0c", threads=2)
    outputs = model.run({"x": array})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from l0compress_runtime.archive import Files, FormatError, open_files, size_of
from l0compress_runtime.arguments import MOST_THREADS, checks_of, path_of, whole_number
from l0compress_runtime.engines import find
from l0compress_runtime.errors import InputError, RunError
from l0compress_runtime.manifest import DENSE, MANIFEST, Manifest, Step
from l0compress_runtime.parts import Parts
from l0compress_runtime.reading import parse
from l0compress_runtime.segments import OpenSegment
from l0compress_runtime.stages import Stage, as_one_graph, run_stages, stages_of
from l0compress_runtime.tuning import SPLIT, batch_dim_of, best_plan, example_inputs, slow_fusions

Array = NDArray[Any]

LIMIT_BYTES = 2**26
LIMIT_TIMES_FILE = 256
MOST_MANIFEST_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class _Way:
    """A plan that is ready to run: its stages, and the single graph that it consists of, if it does."""

    stages: list[Stage]
    graph: OpenSegment | None


class Bundle:
    """A loaded bundle. It may be run from several threads at once.

    Call :func:`load` in every process that runs it: its contents can be neither pickled nor copied.

    Attributes:
        manifest: the bundle's description of itself.
        inputs: name, dtype and shape of each input.
        outputs: the same for each output.
        plans: for each batch size that was considered, the steps of a run of about that size.
    """

    def __init__(self, parts: Parts, plans: Mapping[int, tuple[Step, ...]]) -> None:
        self.manifest = parts.manifest
        self.inputs = self.manifest.inputs
        self.outputs = self.manifest.outputs
        self.plans = {size: tuple(_as_run(parts, step) for step in plan) for size, plan in sorted(plans.items())}
        self._names = tuple(port.name for port in self.outputs)
        self._checked = checks_of(self.inputs)
        ways = {plan: self._way(stages_of(parts, plan)) for plan in dict.fromkeys(self.plans.values())}
        self._ways = [(size, ways[plan]) for size, plan in self.plans.items()]
        # Nearest on a logarithmic scale, in integers: up to the root of the product of two neighbours.
        self._bounds = [(size * larger, way) for (size, way), (larger, _) in pairwise(self._ways)]
        places = ((port.name, batch_dim_of(port.shape)) for port in self.inputs)
        self._batched = next(((name, dim) for name, dim in places if dim is not None), None)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs.

        Args:
            inputs: an array for each input, of its dtype and shape; a size with a name is free.

        Raises:
            InputError: an input is missing, is not one of the model's, or has a shape, dtype or byte order that the
                model does not accept.
        """
        checked = self._checked(inputs)
        way = self._way_for(checked)
        if way.graph is not None:
            return dict(zip(self._names, way.graph.named(checked), strict=True))
        values = dict(checked)
        run_stages(way.stages, values)
        return {name: values[name] for name in self._names}

    def engines(self) -> dict[int, dict[str, str]]:
        """Return, for each batch size that was considered, which engine runs each sparse layer; ``dense`` is one."""
        names = {key: layer.name for key, layer in self.manifest.layers.items()}
        chosen: dict[int, dict[str, str]] = {}
        for size, plan in self.plans.items():
            chosen[size] = dict.fromkeys(names.values(), DENSE)
            chosen[size].update({names[step.part]: step.engine for step in plan if step.engine is not None})
        return chosen

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a bundle cannot be pickled or copied: its graphs and compiled layers belong to this process.",
            fix="Call l0compress_runtime.load in the other process, for instance in the initializer of a pool.",
        )

    def _way(self, stages: list[Stage]) -> _Way:
        names = [port.name for port in self.inputs]
        return _Way(stages, as_one_graph(stages, names, self._names))

    def _way_for(self, inputs: Mapping[str, Array]) -> _Way:
        if len(self._ways) == 1 or self._batched is None:
            return self._ways[0][1]
        name, dim = self._batched
        batch_size = inputs[name].shape[dim]
        for bound, way in self._bounds:
            if batch_size * batch_size <= bound:
                return way
        return self._ways[-1][1]


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    engine: str | None = None,
    tune: bool = False,
    limit_bytes: int | None = None,
) -> Bundle:
    """Load a bundle: one file, or a folder with the same members.

    Args:
        path: what ``l0compress export --format bundle`` wrote.
        threads: threads that a run uses; None leaves the choice to ONNX Runtime and gives sparse layers one.
        engine: run every sparse layer on this engine, whatever the bundle recommends, or on scipy if it does not
            support the layer.
        tune: time every layer on every engine available on this machine, or on ``engine``, as well as the whole model
            and its layers dense, and keep the fastest.
        limit_bytes: the most memory that constants may take; by default 64 MiB plus 256 times the size of the bundle.

    Raises:
        RunError: the path is not a bundle, or the bundle is damaged, of another version, or not what it claims to be;
            none of it was run.
        InputError: no such engine, or one that is not installed; or an argument of the wrong type or out of range.
    """
    threads = whole_number("threads", threads, MOST_THREADS)
    with _members(path_of(path), whole_number("limit_bytes", limit_bytes)) as (files, limit):
        return from_files(files, threads=threads, engine=engine, tune=tune, limit_bytes=limit)


def read_manifest(path: str | Path) -> Manifest:
    """Return a bundle's description of itself; none of its parts is read.

    Raises:
        RunError: the path is not a bundle, or is one of another version, or its manifest is damaged.
    """
    with _members(path_of(path)) as (files, _):
        return _manifest(files)


@contextmanager
def _members(path: Path, limit_bytes: int | None = None) -> Iterator[tuple[Files, int]]:
    """Yield the members of a bundle, and the most memory that its constants may take; errors inside name the bundle."""
    try:
        files, limit = _opened(path, limit_bytes)
        with closing(files):
            yield files, limit
    except FormatError as error:
        raise RunError(f"Cannot read bundle {str(path)!r}: {error}. None of it was run. {error.advice}") from error
    except MemoryError as error:
        raise RunError(f"Cannot read bundle {str(path)!r}: there is not enough memory for it.") from error


def from_files(
    files: Files, *, threads: int | None, limit_bytes: int, engine: str | None = None, tune: bool = False
) -> Bundle:
    """Build a bundle from its members.

    Raises:
        FormatError: a member is missing, damaged, or not what the manifest says.
        InputError: no such engine, or one that is not installed.
    """
    available = [found.name for found in find([engine] if engine is not None else None)]
    manifest = _manifest(files)
    parts = Parts(files, manifest, threads=threads, limit_bytes=limit_bytes)
    plans = {size: manifest.plans[name] for size, name in manifest.choices}
    if engine is None:
        plans = {size: _fitted(manifest, plan, size, available) for size, plan in plans.items()}
    else:
        plans = {size: _forced(manifest, plan, engine) for size, plan in plans.items()}
    bundle = Bundle(parts, plans)
    if not tune:
        return bundle
    parts = parts.disabling(slow_fusions(parts, {size: example_inputs(manifest.inputs, size) for size in plans}))
    return Bundle(parts, {size: best_plan(parts, size, available) for size in plans})


def _opened(path: Path, limit_bytes: int | None) -> tuple[Files, int]:
    size = size_of(path)
    limit = limit_bytes if limit_bytes is not None else LIMIT_BYTES + LIMIT_TIMES_FILE * size
    return open_files(path, limit_bytes=limit), limit


def _manifest(files: Files) -> Manifest:
    if MANIFEST not in files.names:
        raise FormatError(f"has no {MANIFEST}")
    text = files.read(MANIFEST)
    if len(text) > MOST_MANIFEST_BYTES:
        raise FormatError(f"has a {MANIFEST} of {len(text):,} bytes")
    try:
        manifest = parse(text)
    except FormatError as error:
        raise error.within(MANIFEST) from error
    unexpected = sorted(set(files.names) - {MANIFEST, *manifest.hashes})
    if unexpected:
        raise FormatError(f"has {unexpected[0]}, which its manifest does not list")
    return manifest


def _as_run(parts: Parts, step: Step) -> Step:
    return replace(step, engine=parts.engine_of(step))


def _forced(manifest: Manifest, plan: tuple[Step, ...], engine: str) -> tuple[Step, ...]:
    """Return a plan with every layer on one engine: if possible the plan of all layers, and not the chosen one."""
    steps = manifest.plans.get(SPLIT, plan)
    return tuple(step if step.engine is None else replace(step, engine=engine) for step in steps)


def _fitted(manifest: Manifest, plan: tuple[Step, ...], batch_size: int, available: Sequence[str]) -> tuple[Step, ...]:
    """Return the plan on the engines available here."""
    return tuple(
        step
        if step.engine in (None, DENSE, *available)
        else replace(step, engine=_fastest(manifest, step.part, batch_size, available))
        for step in plan
    )


def _fastest(manifest: Manifest, layer: str, batch_size: int, available: Sequence[str]) -> str:
    """Return the available engine that was fastest when the layer was timed, or else the default."""
    timed = {
        name: ms
        for timing in manifest.layer_timings
        if timing.layer == layer and timing.batch_size == batch_size
        for name, ms in timing.median_ms.items()
        if name in (DENSE, *available)
    }
    return min(timed, key=timed.__getitem__) if timed else available[0]
