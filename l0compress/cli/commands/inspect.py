"""``l0compress inspect MODEL``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from l0compress.cli.commands import options
from l0compress.cli.render import print_columns, print_json, print_lines

if TYPE_CHECKING:
    from l0compress.pipeline.inspection import Inspection


def inspect(
    model: options.ModelPath,
    data: Annotated[
        str | None, typer.Option(help=f"Data whose first samples serve as example inputs: {options.DATA_HELP}")
    ] = None,
    factory: options.Factory = None,
    trust_pickle: options.TrustPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """List what can be removed from MODEL, and what cannot and why."""
    with options.exit_codes():
        from l0compress.loading import ModelSource
        from l0compress.pipeline import inspection

        found = inspection.inspect(ModelSource(model, factory, trust_pickle), data=data)
        if as_json:
            print_json(found.to_json())
        else:
            _print(found)


def _print(inspection: Inspection) -> None:
    cost, smallest = inspection.cost, inspection.smallest
    print_columns(
        inspection.model,
        ("cost", "dense", "least possible", "share"),
        [
            (name, f"{dense:,}", f"{least:,}", f"{least / max(dense, 1):.4f}")
            for name, dense, least in (
                ("parameters", cost.params, smallest.params),
                ("MACs a sample", cost.macs, smallest.macs),
                ("bytes of weights", cost.size_bytes, smallest.size_bytes),
            )
        ],
        numbers=("dense", "least possible", "share"),
    )
    print_columns(
        f"{len(inspection.groups)} groups with {inspection.num_moves:,} moves: what can be removed",
        ("group", "kind", "moves", "parameters", "MACs", "shortens"),
        [
            (
                group.name,
                group.kind,
                f"{len(group.moves):,}",
                f"{group.params:,}",
                f"{group.macs:,}",
                _some(group.where),
            )
            for group in inspection.groups
        ],
        numbers=("moves", "parameters", "MACs"),
    )
    if inspection.frozen:
        print_columns(
            "Frozen: what stays whole",
            ("where", "dim", "channels", "operator", "reason", "source"),
            [
                (place.where, str(place.dim), f"{place.channels:,}", place.op, place.reason, place.source)
                for place in inspection.frozen
            ],
            numbers=("dim", "channels"),
        )
    print_lines(
        ["One move at least stays in every group. Next: l0compress finetune MODEL --data DATA --target macs=0.5"]
    )


def _some(names: tuple[str, ...], most: int = 2) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
