"""``l0compress export [RUN] --format onnx``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from l0compress.cli.commands import options
from l0compress.cli.render import print_json, print_lines


def export(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder.", show_default="the newest under ./runs")
    ] = None,
    format: Annotated[Literal["onnx", "pt2"], typer.Option(help="The kind of artifact.")] = "onnx",
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
    as_json: options.AsJson = False,
) -> None:
    """Write the small model of RUN as an artifact, if it equals the run's masked dense model."""
    with options.exit_codes():
        from l0compress.export.quantize import Int8
        from l0compress.pipeline.exporting import export_run

        method = None if quantize is None else quantize.removeprefix("int8").removeprefix("-") or "auto"
        int8 = None if method is None else Int8(method, calibrate)
        exported = export_run(run, format=format, path=output, int8=int8, sparse_weights=sparse_weights)
        if as_json:
            print_json(exported.to_json())
            return
        print_lines([*exported.lines(), f"wrote {exported.path} ({exported.size_bytes:,} bytes)"])
