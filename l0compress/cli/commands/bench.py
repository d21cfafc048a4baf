"""``l0compress bench ARTIFACT --against DENSE --batch 1,8,64``"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from l0compress.cli.commands import options
from l0compress.cli.render import messages, print_json, print_next, print_table


def bench(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT",
            help="An .onnx or .pt2 file, a bundle, or a folder of transformers; or a run folder, every form of which "
            "is made and timed, or every member, if it is a family.",
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="DENSE", help="What to compare with: a run folder (its dense model), or an artifact."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes.")] = "1,8,64",
    threads: Annotated[int, typer.Option(min=1, help="Threads to compute with.")] = 2,
    provider: options.Provider = "cpu",
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the latencies, of a run the scores over latency and size: a .png, .svg or .pdf file (needs "
            "matplotlib).",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time ARTIFACT, alone or in turns with the dense model and int8. Against a run, ARTIFACT is verified first."""
    with options.exit_codes():
        how: dict[str, Any] = {"batch_sizes": options.batch_sizes(batch), "threads": threads, "provider": provider}
        from l0compress.cli.bar import Bar
        from l0compress.measure.plot import check_picture, plot_latency, plot_tradeoff
        from l0compress.pipeline.benching import bench_artifact
        from l0compress.pipeline.family_bench import bench_family
        from l0compress.pipeline.runs import is_family, is_run

        if plot is not None:
            check_picture(plot)
        with Bar(messages(), still=True):
            if against is None and is_family(artifact):
                measured = bench_family(artifact, **how)
            else:
                measured = bench_artifact(artifact, against=against, **how)
        if plot is not None and measured.tradeoff is not None:
            plot_tradeoff(measured.tradeoff, plot, title=str(artifact))
        elif plot is not None:
            plot_latency(measured.report, plot)
        if as_json:
            print_json(measured.to_json())
            return
        for table in measured.tables():
            print_table(table)
        run = artifact if is_run(artifact) else against
        if run is not None and is_run(run):
            print_next(f"l0compress report {shlex.quote(str(run))}")
        else:
            print_next(f"l0compress verify {shlex.quote(str(artifact))} --against RUN")
