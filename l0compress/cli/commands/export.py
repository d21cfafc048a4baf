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
    as_json: options.AsJson = False,
) -> None:
    """Write the small model of RUN as an artifact, if it equals the run's masked dense model."""
    with options.exit_codes():
        from l0compress.pipeline.exporting import export_run

        exported = export_run(run, format=format, path=output)
        if as_json:
            print_json(exported.to_json())
            return
        equality = exported.equality
        print_lines(
            [
                f"equal to the masked dense model: largest relative difference {equality.max_relative:.2e} "
                f"at batch sizes {', '.join(map(str, equality.batch_sizes))}",
                f"wrote {exported.path} ({exported.size_bytes:,} bytes)",
            ]
        )
