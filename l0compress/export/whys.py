"""How every sparse constant of a bundle runs, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping

from l0compress_runtime.manifest import DENSE, Manifest


def whys(manifest: Manifest, reasons: Mapping[str, str]) -> dict[str, str]:
    """Return how each sparse constant runs, and why; ``reasons`` are those of constants that cannot run sparse."""
    said = {name: f"dense: {reason}" for name, reason in reasons.items()}
    timed = {(timing.layer, timing.batch_size): timing.median_ms for timing in manifest.layer_timings}
    for key, layer in manifest.layers.items():
        sizes: dict[str, list[str]] = {}
        for size, plan in manifest.choices:
            engine = next((step.engine or DENSE for step in manifest.plans[plan] if step.part == key), DENSE)
            sizes.setdefault(_why(engine, timed.get((key, size))), []).append(str(size))
        if timed:
            said[layer.name] = "; ".join(f"batch {', '.join(at)}: {why}" for why, at in sizes.items())
        else:
            said[layer.name] = next(iter(sizes))
    return said


def _why(engine: str, medians: Mapping[str, float] | None) -> str:
    if not medians:
        return f"{engine}, not measured"
    fastest = min(medians, key=medians.__getitem__)
    if engine != DENSE:
        return f"{engine}, the fastest"
    return "dense, the fastest" if fastest == DENSE else f"dense, since {fastest} gains less than a cut costs"


def ternary_words(manifest: Manifest) -> str | None:
    """Return what is stored as signs and scales, in words; None where nothing is."""
    specs = manifest.ternary.values()
    if not specs:
        return None
    values, nonzeros = sum(spec.size for spec in specs), sum(spec.nonzeros or 0 for spec in specs)
    weights = "1 weight is" if len(specs) == 1 else f"{len(specs)} weights are"
    return (
        f"{weights} ternary, one scale times -1, 0 or 1 in every row, and stored so, exactly: {values:,} values of at "
        f"most two bits, {1 - nonzeros / values:.1%} of them 0"
    )
