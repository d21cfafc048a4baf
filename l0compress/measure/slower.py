"""Why a smaller model is not faster: what its timings and its arithmetic tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l0compress.measure.bench import BenchReport
    from l0compress.measure.report import Measured

# Medians of models that take turns differ by this much of their own accord.
NOISE = 0.03


def slower_notes(bench: BenchReport, models: Sequence[Measured]) -> tuple[str, ...]:
    """Return a sentence for every batch size at which a model is slower than the first, with fewer operations.

    Models whose weights are stored in fewer bytes compute with other kernels, and are left out. The fastest rate of
    both at any batch size stands for what the machine can do.

    Args:
        bench: timings of the models, by name.
        models: the first is what the others are compared with.

    Example:
        >>> from l0compress.graph.groups.cost import Cost
        >>> from l0compress.measure.bench import BenchReport, Timing
        >>> from l0compress.measure.report import Measured
        >>> models = [Measured("dense", Cost(9, 2_000_000, 36)), Measured("small", Cost(3, 1_000_000, 12))]
        >>> medians = {("dense", 1): 0.20, ("dense", 64): 6.4, ("small", 1): 0.25, ("small", 64): 3.2}
        >>> timings = [Timing(name, size, 15, ms, ms, 0.0) for (name, size), ms in medians.items()]
        >>> print(*slower_notes(BenchReport(2, tuple(timings), {}), models))
        small is not faster than dense at batch 1: its arithmetic takes about 20 % of its 0.250 ms; the rest, starting \
operators and moving data, depends little on widths.
    """
    dense, *others = models
    smaller = [model for model in others if dense.cost and model.cost and not model.quantized and not dense.quantized]
    return tuple(
        _note(bench, dense, model, size)
        for model in smaller
        if _macs(model) < _macs(dense)
        for size in bench.batch_sizes
        if bench.speedup(model.name, dense.name, size) < 1 - NOISE
    )


def _note(bench: BenchReport, dense: Measured, model: Measured, batch_size: int) -> str:
    rates = {(form.name, size): _rate(bench, form, size) for form in (dense, model) for size in bench.batch_sizes}
    taken_ms = bench.timing(model.name, batch_size).median_ms
    share = rates[model.name, batch_size] / max(rates.values())
    said = f"{model.name} is not faster than {dense.name} at batch {batch_size}: "
    if share < 0.5:
        return said + (
            f"its arithmetic takes about {share:.0%} of its {taken_ms:.3f} ms; the rest, starting operators and moving "
            "data, depends little on widths."
        ).replace("%", " %")
    own, others = (rates[form.name, batch_size] / 1e6 for form in (model, dense))
    return said + (
        f"it does {own:.1f} GMACs a second there and {dense.name} {others:.1f}, so its kernels do worse at its widths; "
        "multiples of 16 suit most of them."
    )


def _rate(bench: BenchReport, model: Measured, batch_size: int) -> float:
    """Multiply-accumulates a millisecond."""
    return _macs(model) * batch_size / bench.timing(model.name, batch_size).median_ms


def _macs(model: Measured) -> int:
    found = model.without_zeros
    return 0 if found is None else found.macs
