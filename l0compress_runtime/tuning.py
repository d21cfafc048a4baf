"""Which engine is fastest for each layer, and which plan for the whole model: measured on the current machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l0compress_runtime.archive import FormatError
from l0compress_runtime.engines import find
from l0compress_runtime.manifest import DENSE, Port, Step
from l0compress_runtime.parts import DEFAULT_ENGINE, Parts
from l0compress_runtime.sessions import SLOW_FUSIONS
from l0compress_runtime.stages import Stage, run_stages, stages_of
from l0compress_runtime.timing import medians_ms

Array = NDArray[Any]

# Every candidate as a layer, and the model as one dense graph.
SPLIT, WHOLE = "split", "whole"
# A plan that takes more than this share of the dense model's time is not worth a cut: two equal programs differ by a
# few per cent from one process to the next.
WORTH = 0.95
SECONDS_A_LAYER = 0.15
SECONDS_A_PLAN = 1.0
EXAMPLE_LENGTH = 16
MOST_EXAMPLE_ELEMENTS = 2**28


def layer_medians(parts: Parts, inputs: Mapping[str, Array], engines: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each layer, on each engine that supports it and as a dense graph, by layer.

    The layers get the inputs that they would get in a run of the model on ``inputs``.
    """
    plan = tuple(
        step if step.engine is None else replace(step, engine=DEFAULT_ENGINE) for step in parts.manifest.plans[SPLIT]
    )
    values = dict(inputs)
    table: dict[str, dict[str, float]] = {}
    for step, stage in zip(plan, stages_of(parts, plan), strict=True):
        if step.engine is not None and step.part not in table:
            arrays = [values[name] for name in stage.inputs]
            names = [DENSE, *parts.supported(step.part, find(engines))]
            table[step.part] = medians_ms(
                {name: _call(parts, Step(step.part, name), arrays) for name in names}, max_seconds=SECONDS_A_LAYER
            )
        run_stages([stage], values)
    return table


def best_plan(parts: Parts, batch_size: int, engines: Sequence[str]) -> tuple[Step, ...]:
    """Return the fastest plan on this machine: each layer on its fastest engine, the export's choice, or all dense."""
    manifest = parts.manifest
    inputs = example_inputs(manifest.inputs, batch_size)
    candidates = {name: manifest.plans[name] for size, name in manifest.choices if size == batch_size}
    candidates = {f"chosen {name}": _on(engines, plan) for name, plan in candidates.items()}
    if WHOLE in manifest.plans:
        candidates[WHOLE] = manifest.plans[WHOLE]
    if SPLIT in manifest.plans:
        table = layer_medians(parts, inputs, engines)
        candidates[SPLIT] = on_fastest(manifest.plans[SPLIT], table)
    runs = {name: plan_call(parts, plan, inputs) for name, plan in candidates.items()}
    medians = medians_ms(runs, max_seconds=SECONDS_A_PLAN)
    fastest = min(medians, key=medians.__getitem__)
    is_worth_it = WHOLE not in medians or medians[fastest] <= WORTH * medians[WHOLE]
    return candidates[fastest if is_worth_it else WHOLE]


def slow_fusions(parts: Parts, feeds: Mapping[int, Mapping[str, Array]]) -> tuple[str, ...]:
    """Return the ONNX Runtime optimizers to disable: those that make the dense model slower at every batch size.

    Args:
        parts: with a plan that is all dense; without one, nothing is disabled.
        feeds: inputs for each batch size.
    """
    plan = parts.manifest.plans.get(WHOLE)
    if plan is None or not parts.operators(plan) >= {"Add", "LayerNormalization"}:
        return ()
    plain, without = parts.disabling(()), parts.disabling(SLOW_FUSIONS)
    for inputs in feeds.values():
        runs = {"plain": plan_call(plain, plan, inputs), "without": plan_call(without, plan, inputs)}
        medians = medians_ms(runs, max_seconds=SECONDS_A_PLAN)
        if medians["without"] > WORTH * medians["plain"]:
            return ()
    return SLOW_FUSIONS


def on_fastest(plan: tuple[Step, ...], table: Mapping[str, Mapping[str, float]]) -> tuple[Step, ...]:
    """Return the plan with each layer on the engine with the smallest median.

    Example:
        >>> on_fastest((Step("a"), Step("b", "scipy")), {"b": {"dense": 2.0, "scipy": 3.0}})
        (Step(part='a', engine=None), Step(part='b', engine='dense'))
    """
    return tuple(
        step if step.engine is None else Step(step.part, min(table[step.part], key=table[step.part].__getitem__))
        for step in plan
    )


def example_inputs(ports: Sequence[Port], batch_size: int, *, seed: int = 0) -> dict[str, Array]:
    """Make inputs from shapes alone: normal noise, and zeros for integers, which are valid indices for any table.

    Free sizes other than the batch are those of the example that the model was captured with, or else 16.

    Raises:
        FormatError: an input would have more than 2**28 elements.

    Example:
        >>> example_inputs([Port("x", "float32", ("batch", 3))], 5)["x"].shape
        (5, 3)
    """
    generator = np.random.default_rng(seed)

    def fill(port: Port) -> Array:
        shape = example_shape(port.shape, port.example, batch_size, batch_dim_of(port.shape))
        if prod(shape) > MOST_EXAMPLE_ELEMENTS:
            raise FormatError(f"takes an input of shape {shape}, which is too large to time")
        if port.dtype.startswith("float"):
            return generator.standard_normal(shape).astype(port.dtype)
        return np.zeros(shape, port.dtype)

    return {port.name: fill(port) for port in ports}


def example_shape(
    sizes: Sequence[int | str | None], example: tuple[int, ...], batch_size: int, batch_dim: int | None = 0
) -> tuple[int, ...]:
    """Return sizes for an input with free ones (a name, or None): its batch, those of an example, or else 16.

    Example:
        >>> example_shape(("batch", 3, "length"), (2, 3, 7), 5), example_shape((None, None), (), 5)
        ((5, 3, 7), (5, 16))
        >>> example_shape((2, "batch", 8), (2, 3, 8), 5, 1)
        (2, 5, 8)
    """
    free = example or (EXAMPLE_LENGTH,) * len(sizes)
    return tuple(
        size if isinstance(size, int) else batch_size if dim == batch_dim else free[dim]
        for dim, size in enumerate(sizes)
    )


def batch_dim_of(sizes: Sequence[int | str | None]) -> int | None:
    """Return which dimension of an input the batch is, by the names of its free sizes: the one named batch; failing
    that the first, unless it is fixed or a length.

    Example:
        >>> [batch_dim_of(sizes) for sizes in (("length", "batch", 8), ("rows", 8), (2, "batch_2"), ("length",), (3,))]
        [1, 0, 1, None, None]
    """
    called = [dim for dim, size in enumerate(sizes) if isinstance(size, str) and size.startswith("batch")]
    first = sizes[0] if sizes else 1
    leads = not isinstance(first, int) and not str(first).startswith("length")
    return next(iter((*called, *([0] if leads else []))), None)


def plan_call(parts: Parts, plan: tuple[Step, ...], inputs: Mapping[str, Array]) -> Callable[[], Any]:
    """Return a function that runs a plan once on fixed inputs."""
    stages: list[Stage] = stages_of(parts, plan)
    return lambda: run_stages(stages, dict(inputs))


def _on(engines: Sequence[str], plan: tuple[Step, ...]) -> tuple[Step, ...]:
    known = (None, DENSE, *engines)
    return tuple(step if step.engine in known else replace(step, engine=engines[0]) for step in plan)


def _call(parts: Parts, step: Step, arrays: list[Array]) -> Callable[[], Any]:
    run = parts.run_of(step)
    return lambda: run(arrays)
