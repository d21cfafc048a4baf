"""``l0compress inspect MODEL``"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from l0compress.cli.commands import options
from l0compress.cli.render import messages, print_json, print_lines, print_listing, print_next

if TYPE_CHECKING:
    from l0compress.pipeline.inspection import GroupRow, Inspection


def inspect(
    model: options.ModelPath,
    data: Annotated[
        str | None, typer.Option(help=f"Data whose first samples serve as example inputs: {options.DATA_HELP}")
    ] = None,
    factory: options.Factory = None,
    factory_args: options.FactoryArgs = None,
    trust_pickle: options.TrustPickle = False,
    fixed: options.Fixed = False,
    target_column: options.TargetColumn = None,
    tokenizer: options.Tokenizer = None,
    max_length: options.MaxLength = None,
    image_size: options.ImageSize = None,
    normalize: options.Normalize = None,
    no_labels: options.NoLabels = False,
    split: options.Shares = None,
    stratify: options.Stratify = False,
    data_seed: options.DataSeed = None,
    workers: options.Workers = None,
    keep: options.Keep = None,
    min_density: options.MinDensity = None,
    full: Annotated[bool, typer.Option("--full", help="One row per group: do not merge repeated layers.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """List what can be removed from MODEL, and what cannot and why."""
    with options.exit_codes():
        described = {
            "target_column": target_column, "tokenizer": tokenizer, "max_length": max_length, "image_size": image_size,
            "normalize": normalize, "no_labels": no_labels, "split": split, "stratify": stratify,
            "data_seed": data_seed, "workers": workers,
        }  # fmt: skip
        if data is None:
            options.check_described(described)
        from l0compress.cli.bar import Bar
        from l0compress.loading import ModelSource, parse_factory_args
        from l0compress.pipeline import inspection

        source = ModelSource(model, factory, trust_pickle, parse_factory_args(factory_args))
        given = None if data is None else options.data_source(data, model, described)
        with Bar(messages()):
            found = inspection.inspect(source, data=given, fixed=fixed, keep=keep or (), min_density=min_density or ())
        if as_json:
            print_json(found.to_json())
        else:
            _print(found, full)
            shown = "DATA" if data is None else shlex.quote(data)
            print_next(f"l0compress finetune {shlex.quote(str(model))} --data {shown} --target macs=0.5")


def _print(inspection: Inspection, full: bool) -> None:
    _print_costs(inspection)
    _print_groups(inspection, inspection.single_rows() if full else inspection.rows)
    if inspection.frozen:
        _print_frozen(inspection)
    for operator, sources in inspection.unknown:
        calls = f" ({', '.join(sources)})" if sources else ""
        print_lines(
            [f"No rule for operator {operator}{calls}.", f'  Teach one: l0compress.register_operator("{operator}", …)']
        )
    if inspection.training_only:
        print_lines(["Lost in capture: what the model does only in training mode, and no run will do"])
        print_lines([*(f"  {part.sentence}" for part in inspection.training_only), ""])


def _print_costs(inspection: Inspection) -> None:
    dense, smallest = inspection.cost, inspection.smallest
    rows = [
        (name, f"{whole:,}", f"{least:,}", _percent(whole - least, whole))
        for name, whole, least in (
            ("parameters", dense.params, smallest.params),
            ("MACs a sample", dense.macs, smallest.macs),
            ("bytes of weights", dense.bytes, smallest.bytes),
            ("bytes in int8", dense.int8_bytes, smallest.int8_bytes),
        )
    ]
    columns = ("cost", "dense", "smallest", "removable %")
    print_listing(inspection.model, columns, rows, numbers=columns[1:])
    print_lines([""])


def _print_groups(inspection: Inspection, rows: tuple[GroupRow, ...]) -> None:
    columns = ("group", "kind", "channels", "params", "%", "MACs", "%", "vanishes")
    cells = [
        (
            row.name,
            row.kind,
            f"{row.groups:,} \u00d7 {row.channels:,}" if row.groups > 1 else f"{row.channels:,}",
            _count(row.params),
            _percent(row.params, inspection.cost.params),
            _count(row.macs),
            _percent(row.macs, inspection.cost.macs),
            "yes" if row.can_vanish else "no",
        )
        for row in rows
    ]
    many = len(inspection.groups)
    title = f"{many:,} group{'s' if many > 1 else ''} with {inspection.num_moves:,} moves: what can be removed"
    print_listing(title, columns, cells, numbers=("channels", "params", "%", "MACs"))
    hint = [] if len(rows) == many else ["--full lists every group separately."]
    print_lines(
        ["A weight between two groups counts in both.", "Where a group cannot vanish, one move stays.", *hint, ""]
    )


def _print_frozen(inspection: Inspection) -> None:
    columns = ("reason", "source", "dims", "params", "%")
    cells = [
        (row.sentence, row.source, f"{row.dims:,}", _count(row.params), _percent(row.params, inspection.cost.params))
        for row in inspection.reasons
    ]
    print_listing("Frozen: what stays whole, and why", columns, cells, numbers=columns[2:])
    print_lines(["dims: of parameters. params: elements on them; another dim may still be cut.", ""])


def _count(number: int) -> str:
    """Exact below a million.

    Examples:
        >>> _count(937_216), _count(40_551_040), _count(7_240_000_000)
        ('937,216', '40.55 M', '7.24 G')
    """
    if number < 1_000_000:
        return f"{number:,}"
    unit, name = next((unit, name) for unit, name in ((10**12, "T"), (10**9, "G"), (10**6, "M")) if number >= unit)
    return f"{number / unit:.2f} {name}"


def _percent(part: int, whole: int) -> str:
    """In percent; what is not all of it never reads 100."""
    found = 100 * part / whole if whole else 0.0
    return f"{min(found, 99.9) if part < whole else found:.1f}"
