"""A plan as a list of functions on named values; a value is released as soon as nothing needs it any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from l0compress_runtime.errors import InputError
from l0compress_runtime.manifest import Manifest, Step
from l0compress_runtime.parts import Parts
from l0compress_runtime.segments import OpenSegment, Runner

Array = NDArray[Any]


@dataclass(frozen=True)
class Stage:
    """A step with the values that it reads and produces, and those no longer needed afterwards; a layer has a name."""

    name: str | None
    run: Runner
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    frees: tuple[str, ...]


def stages_of(parts: Parts, plan: tuple[Step, ...]) -> list[Stage]:
    """Return the stages of a plan.

    Raises:
        FormatError: a part of the plan is damaged, or is not what the manifest says.
    """
    kept = {port.name for port in parts.manifest.outputs}
    stages: list[Stage] = []
    for step in reversed(plan):
        inputs, outputs = _ends(parts.manifest, step)
        frees = tuple(name for name in dict.fromkeys((*inputs, *outputs)) if name not in kept)
        kept.update(frees)
        name = None if step.engine is None else parts.manifest.layers[step.part].name
        stages.append(Stage(name, parts.run_of(step), inputs, outputs, frees))
    return stages[::-1]


def as_one_graph(stages: Sequence[Stage], inputs: Sequence[str], outputs: Sequence[str]) -> OpenSegment | None:
    """Return the graph that a plan consists of, if it is a single one from the model's inputs to its outputs."""
    if len(stages) != 1 or set(stages[0].inputs) != set(inputs) or stages[0].outputs != tuple(outputs):
        return None
    run = stages[0].run
    return run if isinstance(run, OpenSegment) else None


def run_stages(stages: Sequence[Stage], values: dict[str, Array]) -> None:
    """Run stages in order, reading from and writing to the same named values.

    Raises:
        InputError: a stage does not accept its values; for a layer, the message says which and from what.
    """
    for stage in stages:
        try:
            made = stage.run([values[name] for name in stage.inputs])
        except InputError as error:
            if stage.name is None:
                raise
            raise InputError(f"layer {stage.name!r} with the input {', '.join(stage.inputs)}: {error}") from error
        values.update(zip(stage.outputs, made, strict=True))
        for name in stage.frees:
            del values[name]


def _ends(manifest: Manifest, step: Step) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if step.engine is None:
        segment = manifest.segments[step.part]
        return segment.inputs, segment.outputs
    layer = manifest.layers[step.part]
    return layer.inputs, layer.outputs
