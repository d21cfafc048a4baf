"""``l0compress export [RUN] --format onnx``"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l0compress.cli.commands import export_options as flags
from l0compress.cli.commands import options
from l0compress.cli.render import print_json, print_lines, print_table
from l0compress.errors import NOTHING_WRITTEN, InputError

if TYPE_CHECKING:
    from l0compress.export.files import Exported


def export(
    run: flags.RunFolder = None,
    format: flags.Format = "onnx",
    output: flags.Output = None,
    member: flags.Member = None,
    quantize: flags.Quantize = None,
    calibrate: flags.Calibrate = None,
    sparse_weights: flags.SparseWeights = False,
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
        batch_sizes = None if batch is None else options.batch_sizes(batch)
        if calibrate is not None and quantize in (None, "int8-dynamic"):
            why = "the file is not quantized" if quantize is None else "dynamic int8 needs none"
            raise InputError(
                f"--calibrate sets the number of samples for calibrating static int8, but {why}.",
                fix="Pass --quantize int8-static, or omit it.",
                assurance=NOTHING_WRITTEN,
            )
        from l0compress.export.bundle import BundleSettings
        from l0compress.export.quantize import Int8
        from l0compress.pipeline.exporting import ExportOptions, export_family, export_run
        from l0compress.pipeline.runs import is_family, newest_run

        method = None if quantize is None else quantize.removeprefix("int8").removeprefix("-") or "auto"
        names = None if engines is None else tuple(name.strip() for name in engines.split(","))
        given = {"storage": dtype, "threads": threads, "engines": names}
        given = {name: value for name, value in given.items() if value is not None}
        how = ExportOptions(
            int8=None if method is None else Int8(method, **({} if calibrate is None else {"num_samples": calibrate})),
            sparse_weights=sparse_weights,
            batch_sizes=batch_sizes,
            bundle=BundleSettings(**given) if given else None,
        )
        folder = newest_run() if run is None else run
        if is_family(folder):
            family = export_family(folder, member=member, format=format, path=output, options=how)
            if as_json:
                members = [{"member": name, **exported.to_json()} for name, exported in family.items()]
                print_json({"run": str(folder), "members": members})
                return
            for exported in family.values():
                _print(exported)
            return
        if member is not None:
            raise InputError(
                f"--member names a member of a family, but {str(folder)!r} is a single run.",
                fix="Omit it.",
                assurance=NOTHING_WRITTEN,
            )
        exported = export_run(folder, format=format, path=output, options=how)
        if as_json:
            print_json(exported.to_json())
            return
        _print(exported)


def _print(exported: Exported) -> None:
    from l0compress.export.bundle import ExportedBundle
    from l0compress.measure.report import bundle_table

    if isinstance(exported, ExportedBundle) and exported.manifest.layers:
        print_table(bundle_table(exported.manifest))
    print_lines([*exported.lines(), f"wrote {exported.path} ({exported.size_bytes:,} bytes)"])
