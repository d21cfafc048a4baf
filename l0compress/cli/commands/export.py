"""``l0compress export [RUN] --format onnx``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from l0compress.cli.commands import options
from l0compress.cli.render import print_json, print_lines, print_table

if TYPE_CHECKING:
    from l0compress.export.csr import ExportedBundle


def export(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder.", show_default="the newest under ./runs")
    ] = None,
    format: Annotated[
        Literal["onnx", "csr", "pt2"],
        typer.Option(help="The kind of artifact; csr is a bundle with sparse layers that runs without torch."),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="The file to write.", show_default="RUN/model.<format>"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"],
        typer.Option(help="For csr: how weights are stored; int8 for sparse layers, with one scale an output."),
    ] = "float32",
    batch: Annotated[
        str, typer.Option(metavar="N,N,...", help="For csr: the batch sizes that layers are timed at.")
    ] = "1,8,64",
    threads: Annotated[int, typer.Option(min=1, help="For csr: the threads that layers are timed with.")] = 2,
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="For csr: the engines to choose from: scipy, numba, torch.",
            show_default="those that are installed, without torch",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the small model of RUN as an artifact, if it equals the run's masked dense model."""
    with options.exit_codes():
        batch_sizes = options.batch_sizes(batch)
        from l0compress.export.csr import CsrSettings, ExportedBundle
        from l0compress.pipeline.exporting import export_run

        names = None if engines is None else tuple(name.strip() for name in engines.split(","))
        settings = CsrSettings(storage=dtype, threads=threads, engines=names)
        exported = export_run(run, format=format, path=output, batch_sizes=batch_sizes, settings=settings)
        if as_json:
            print_json(exported.to_json())
            return
        if isinstance(exported, ExportedBundle):
            _print_layers(exported)
        equality = exported.equality
        print_lines(
            [
                f"equal to the masked dense model: largest relative difference {equality.max_relative:.2e} "
                f"at batch sizes {', '.join(map(str, equality.batch_sizes))}",
                f"wrote {exported.path} ({exported.size_bytes:,} bytes)",
            ]
        )


def _print_layers(exported: ExportedBundle) -> None:
    from l0compress.report import bundle_table

    print_table(bundle_table(exported.manifest))
    print_lines([f"the same model as an ONNX file: {exported.onnx_bytes:,} bytes"])
