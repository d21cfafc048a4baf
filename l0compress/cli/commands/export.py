"""``l0compress export [RUN] --format onnx``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from l0compress.cli.commands import options
from l0compress.cli.render import print_json, print_lines, print_table

if TYPE_CHECKING:
    pass


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
    quantize: Annotated[
        Literal["int8", "int8-dynamic", "int8-static"] | None,
        typer.Option(
            help="Round an ONNX file to int8 and print the score before and after. int8 takes static where there are "
            "convolutions, dynamic elsewhere."
        ),
    ] = None,
    calibrate: Annotated[
        int, typer.Option(min=1, metavar="N", help="Training samples that static int8 is calibrated on.")
    ] = 256,
    sparse_weights: Annotated[
        bool,
        typer.Option(
            "--sparse-weights",
            help="Leave zeros out of an ONNX file. ONNX Runtime puts them back when it loads it: smaller, not faster.",
        ),
    ] = False,
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
        from l0compress.export.csr import CsrSettings
        from l0compress.export.quantize import Int8
        from l0compress.pipeline.exporting import ExportOptions, export_run

        method = None if quantize is None else quantize.removeprefix("int8").removeprefix("-") or "auto"
        names = None if engines is None else tuple(name.strip() for name in engines.split(","))
        how = ExportOptions(
            int8=None if method is None else Int8(method, calibrate),
            sparse_weights=sparse_weights,
            batch_sizes=batch_sizes,
            csr=CsrSettings(storage=dtype, threads=threads, engines=names),
        )
        exported = export_run(run, format=format, path=output, options=how)
        if as_json:
            print_json(exported.to_json())
            return
        for table in exported.tables():
            print_table(table)
        print_lines([*exported.lines(), f"wrote {exported.path} ({exported.size_bytes:,} bytes)"])
