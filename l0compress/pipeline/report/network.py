"""The network before and after, layer by layer, and what stayed whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt

from l0compress.export.pt2 import captured_pt2
from l0compress.graph.capture import CapturedGraph
from l0compress.graph.cut.widths import LayerWidth, layer_widths
from l0compress.graph.groups import find_groups
from l0compress.graph.groups.frozen import Frozen, by_reason
from l0compress.measure.page.content import Kept, Layer, Whole
from l0compress.measure.report import as_share
from l0compress.pipeline.report.told import DENSE, Told
from l0compress.pipeline.requests import settings_in
from l0compress.training.finetune import protected

WIDTHS_NOTE = (
    "One bar a layer, in the order of the network, as wide as the square root of its outputs; the filled part is the "
    "share that was kept."
)
SPARSE_NOTE = (
    "One bar a layer, in the order of the network, as wide as the square root of the elements of its weight; the "
    "filled part is the share that is not zero."
)
_MOST = 12


def layers_of(report: Told, frozen: Sequence[Frozen]) -> tuple[tuple[Layer, ...], str]:
    """Return every layer with what each small model keeps of it, and what its bar shows."""
    dense = captured_pt2(report.first.dense)
    sparse = any(run.result.get("nonzero") for run in report.members.values())
    found = {name: layer_widths(dense, captured_pt2(run.small)) for name, run in report.members.items()}
    whole = {(place.where, place.dim): place for place in frozen}
    sized = [prod(row.dense) if sparse else row.before for row in next(iter(found.values()), ())]
    longest = sqrt(max(sized, default=1))
    layers = tuple(
        _layer({name: rows[index] for name, rows in found.items()}, size, sqrt(size) / longest, whole, sparse)
        for index, size in enumerate(sized)
    )
    return layers, SPARSE_NOTE if sparse else WIDTHS_NOTE


def _layer(
    rows: Mapping[str, LayerWidth],
    size: int,
    length: float,
    whole: Mapping[tuple[str, int], Frozen],
    sparse: bool,
) -> Layer:
    first, last = next(iter(rows.values())), list(rows.values())[-1]
    widths = {name: row.nonzero if sparse else row.after for name, row in rows.items()}
    kept = tuple(Kept(name, width, width / size) for name, width in widths.items())
    place = whole.get((first.name, first.dim))
    uncut = all(width == size for width in widths.values())
    reason = ""
    if uncut and not sparse:
        reason = "nothing of it was removed" if place is None else by_reason([place])[0].sentence
    after = "gone" if last.small is None else _shape(last.small)
    shapes = _shape(first.dense) if first.dense == last.small else f"{_shape(first.dense)} → {after}"
    return Layer(first.name, length, size, kept, shapes, reason)


def _shape(shape: Sequence[int]) -> str:
    return " \u00d7 ".join(map(str, shape))


def frozen_of(report: Told) -> tuple[Frozen, ...]:
    """Return what could not be cut in this run, limits of its own included."""
    return find_groups(_protected(report)).frozen


def _protected(report: Told) -> CapturedGraph:
    settings = settings_in(report.settings)
    return protected(captured_pt2(report.first.dense), settings)


def wholes_of(report: Told, frozen: Sequence[Frozen]) -> tuple[tuple[Whole, ...], str]:
    """Return the reasons why something stayed whole, those that hold most first, and a note."""
    rows = by_reason(frozen)
    params = report.first.result[DENSE]["params"]
    shown = tuple(
        Whole(row.sentence, row.source, f"{row.params:,} ({as_share(row.params, params)})") for row in rows[:_MOST]
    )
    if not rows:
        return (), "Nothing: every layer could be cut."
    more = f"{len(rows) - _MOST} more reasons hold fewer; l0compress inspect lists them. " if len(rows) > _MOST else ""
    return shown, f"{more}Another dimension of a parameter may still have been cut."
