"""``l0compress report [RUN]``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l0compress.cli.commands import options
from l0compress.cli.commands.export_options import RunFolder
from l0compress.cli.render import messages, print_json, print_lines, print_next


def report(
    run: RunFolder = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The .html file to write.", show_default="RUN/report.html"),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile/--no-profile", help="Measure where the time goes, by kind of operator.")
    ] = True,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Samples a call of that measurement.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of that measurement.")] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Write one HTML page about RUN: scores, sizes, times, widths, and how to make it again.

    It needs no network and no other file. What l0compress bench RUN measured is on it too.
    """
    with options.exit_codes():
        from l0compress.cli.bar import Bar
        from l0compress.pipeline.report import write_report
        from l0compress.pipeline.runs import newest_run

        folder = newest_run() if run is None else run
        with Bar(messages(), still=True):
            written = write_report(folder, output, profile=profile, batch=batch, threads=threads)
        if as_json:
            print_json(written.to_json())
            return
        print_lines([f"wrote {written.path} ({written.size_bytes:,} bytes)"])
        print_next(f"open {written.path.resolve().as_uri()} in a browser")
