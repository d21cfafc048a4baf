"""``l0compress export [RUN] --format onnx``"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from l0compress.cli.commands import export_options as flags
from l0compress.cli.commands import options
from l0compress.cli.render import messages, print_json, print_lines, print_next, print_table
from l0compress.errors import NOTHING_WRITTEN, InputError

if TYPE_CHECKING:
    from l0compress.export.files import Exported
    from l0compress.pipeline.exporting import ExportOptions


def export(
    run: flags.RunFolder = None,
    format: flags.Format = "onnx",
    output: flags.Output = None,
    member: flags.Member = None,
    quantize: flags.Quantize = None,
    calibrate: flags.Calibrate = None,
    sparse_weights: flags.SparseWeights = False,
    with_past: flags.WithPast = False,
    opset: flags.Opset = None,
    dtype: flags.Storage = None,
    batch: flags.Batch = None,
    threads: flags.Threads = None,
    engines: flags.Engines = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the small model of RUN as an artifact, if it equals the run's masked dense model.

    Of a family all members are written, each into its own folder.
    """
    with options.exit_codes():
        from l0compress.cli.bar import Bar
        from l0compress.pipeline.exporting import export_family, export_run
        from l0compress.pipeline.runs import is_family, newest_run

        how = _options(
            flags.Rounded(format, quantize, calibrate, dtype),
            flags.Timed(None if batch is None else options.batch_sizes(batch), threads, engines),
            sparse_weights=sparse_weights,
            with_past=with_past,
            opset=opset,
        )
        folder = newest_run() if run is None else run
        if is_family(folder):
            with Bar(messages(), still=True):
                family = export_family(folder, member=member, format=format, path=output, options=how)
            if as_json:
                members = [{"member": name, **exported.to_json()} for name, exported in family.items()]
                print_json({"run": str(folder), "members": members})
                return
            for exported in family.values():
                _print(exported)
            print_next(f"l0compress bench {shlex.quote(str(folder))}")
            return
        if member is not None:
            raise InputError(
                f"--member names a member of a family, but {str(folder)!r} is a single run.",
                fix="Omit it.",
                assurance=NOTHING_WRITTEN,
            )
        with Bar(messages(), still=True):
            exported = export_run(folder, format=format, path=output, options=how)
        if as_json:
            print_json(exported.to_json())
            return
        _print(exported)
        print_next(f"l0compress verify {shlex.quote(str(exported.path))} --against {shlex.quote(str(folder))}")


def _options(
    rounded: flags.Rounded, timed: flags.Timed, *, sparse_weights: bool, with_past: bool, opset: int | None
) -> ExportOptions:
    """What the flags say, as the pipeline takes it."""
    from l0compress.export.bundle import BundleSettings
    from l0compress.export.onnx_settings import OnnxSettings
    from l0compress.pipeline.exporting import ExportOptions

    given = {"storage": None if rounded.format == "onnx" else rounded.dtype, "threads": timed.threads}
    given["engines"] = None if timed.engines is None else tuple(name.strip() for name in timed.engines.split(","))
    given = {name: value for name, value in given.items() if value is not None}
    return ExportOptions(
        rounding=rounded.rounding(),
        sparse_weights=sparse_weights,
        batch_sizes=timed.batch_sizes,
        bundle=BundleSettings(**given) if given else None,
        onnx=None if opset is None else OnnxSettings(opset=opset),
        with_past=with_past,
    )


def _print(exported: Exported) -> None:
    from l0compress.export.bundle import ExportedBundle
    from l0compress.measure.report import bundle_table

    if isinstance(exported, ExportedBundle) and exported.manifest.layers:
        print_table(bundle_table(exported.manifest))
    print_lines([*exported.lines(), f"wrote {exported.path} ({exported.size_bytes:,} bytes)"])
