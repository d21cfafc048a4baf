"""Choose the fastest way to run a model at each batch size, layer by layer, and never slower than all dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from l0compress.export.assemble import Members, completed
from l0compress.export.partition.candidates import Candidate
from l0compress.progress import Stages
from l0compress_runtime.archive import FormatError
from l0compress_runtime.manifest import DENSE, LayerTiming, Manifest, PlanTiming, Step
from l0compress_runtime.parts import Parts
from l0compress_runtime.timing import medians_ms
from l0compress_runtime.tuning import SECONDS_A_PLAN, WHOLE, WORTH, layer_medians, plan_call, slow_fusions

Feeds = Mapping[str, NDArray[np.generic]]

NO_LIMIT = 2**62


@dataclass(frozen=True)
class InMemory:
    """The members of a bundle that has not been written yet."""

    files: Mapping[str, bytes]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the members."""
        return tuple(self.files)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def read(self, name: str) -> bytes:
        """Return one member."""
        if name not in self.files:
            raise FormatError(f"has no {name}")
        return self.files[name]


def parts_of(manifest: Manifest, members: Members, threads: int) -> Parts:
    """Return the parts of a bundle in memory."""
    return Parts(InMemory(members.files), manifest, threads=threads, limit_bytes=NO_LIMIT)


def chosen_plans(
    manifest: Manifest,
    members: Members,
    candidates: Sequence[Candidate],
    *,
    feeds: Mapping[int, Feeds],
    engines: Sequence[str],
    threads: int,
) -> Manifest:
    """Return the manifest with the fastest plan for each batch size, and with the measurements.

    Every candidate is timed dense and on each engine. Those faster on an engine become layers, the others join the
    dense graphs around them. If the whole is not faster than the dense model, the half with the smallest gain becomes
    dense too, and so on until nothing is left. ONNX Runtime fusions that slow the dense model down are disabled in all
    plans; the final comparison is with the dense model with fusions, which is what a user would run.

    Args:
        manifest: with a plan in which every candidate is a layer, and one that is all dense.
        members: the parts; those of new plans are added.
        candidates: the layers.
        feeds: inputs of the model for each batch size.
        engines: names of the engines to choose from.
        threads: threads that a layer or a dense graph uses.
    """
    layer_timings, plan_timings, plans, choices = [], [], dict(manifest.plans), []
    manifest = replace(manifest, disabled_optimizers=slow_fusions(parts_of(manifest, members, threads), feeds))
    parts = parts_of(manifest, members, threads)
    names = {members.layer(candidate): candidate for candidate in candidates}
    stages = Stages([1] * len(feeds))
    for batch_size, inputs in feeds.items():
        with stages.stage(f"layers at batch {batch_size}"):
            table = layer_medians(parts, dict(inputs), engines) if candidates else {}
        layer_timings += [LayerTiming(name, batch_size, medians) for name, medians in table.items()]
        by_candidate = {names[name]: medians for name, medians in table.items()}
        plan, timing = _fastest(manifest, members, by_candidate, inputs, threads)
        known = next((name for name, other in plans.items() if other == plan), f"batch_{batch_size}")
        plans[known] = plan
        choices.append((batch_size, known))
        plan_timings.append(replace(timing, batch_size=batch_size))
    manifest = replace(
        manifest,
        plans=plans,
        choices=tuple(sorted(choices)),
        layer_timings=tuple(layer_timings),
        plan_timings=tuple(plan_timings),
    )
    return completed(manifest, members)


def _fastest(
    manifest: Manifest,
    members: Members,
    table: Mapping[Candidate, Mapping[str, float]],
    inputs: Feeds,
    threads: int,
) -> tuple[tuple[Step, ...], PlanTiming]:
    """Return the fastest plan on these inputs, and its time next to that of one dense graph as ONNX Runtime runs it."""
    engines = {candidate: min(medians, key=medians.__getitem__) for candidate, medians in table.items()}
    gains = {c: table[c][DENSE] - table[c][engine] for c, engine in engines.items() if engine != DENSE}
    chosen = sorted(gains, key=gains.__getitem__, reverse=True)
    whole = manifest.plans[WHOLE]
    parts = parts_of(manifest, members, threads)
    dense = {"whole": plan_call(parts, whole, inputs)}
    if manifest.disabled_optimizers:
        dense[DENSE] = plan_call(parts.disabling(()), whole, inputs)
    medians: dict[str, float] = {}
    while chosen:
        plan = members.plan(sorted(chosen, key=lambda candidate: candidate.nodes), engines)
        parts = parts_of(completed(manifest, members), members, threads)
        medians = medians_ms({"chosen": plan_call(parts, plan, inputs), **dense}, max_seconds=SECONDS_A_PLAN)
        if medians["chosen"] <= WORTH * medians["whole"]:
            return plan, PlanTiming(1, medians.get(DENSE, medians["whole"]), medians["chosen"])
        chosen = chosen[: len(chosen) // 2]
    medians = medians or medians_ms(dense, max_seconds=SECONDS_A_PLAN)
    return whole, PlanTiming(1, medians.get(DENSE, medians["whole"]), medians["whole"])
