"""The flags of ``l0compress export``, in groups by the format that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from l0compress.old_names import FORMATS

CHOICES = ("onnx", "bundle", "pt2")
ONNX, BUNDLE = "For onnx", "For bundle"


def _format(text: str) -> str:
    name = FORMATS.get(text, text)
    if name not in CHOICES:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, CHOICES))}.")
    return name


RunFolder = Annotated[
    Path | None, typer.Argument(metavar="[RUN]", help="A run folder.", show_default="the newest under ./runs")
]
Format = Annotated[
    str,
    typer.Option(
        parser=_format,
        metavar=f"[{'|'.join(CHOICES)}]",
        help="The kind of artifact; a bundle has sparse layers and runs without torch.",
    ),
]
Member = Annotated[
    str | None,
    typer.Option(metavar="TARGET", help="Of a family: one member, such as macs=0.4.", show_default="all of them"),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="PATH", help="The file to write.", show_default="RUN/model.<format>"),
]
Quantize = Annotated[
    Literal["int8", "int8-dynamic", "int8-static"] | None,
    typer.Option(
        help="Round to int8 and print the score before and after. int8 is static where there are convolutions, dynamic "
        "elsewhere.",
        rich_help_panel=ONNX,
    ),
]
Calibrate = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Training samples that static int8 is calibrated on.",
        show_default="256",
        rich_help_panel=ONNX,
    ),
]
SparseWeights = Annotated[
    bool,
    typer.Option(
        "--sparse-weights",
        help="Leave zeros out of the file. ONNX Runtime puts them back when it loads it: smaller, not faster.",
        rich_help_panel=ONNX,
    ),
]
Storage = Annotated[
    Literal["float32", "float16", "bfloat16", "int8"] | None,
    typer.Option(
        "--dtype",
        help="How weights are stored; int8 for sparse layers, with one scale per output.",
        show_default="float32",
        rich_help_panel=BUNDLE,
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="The batch sizes that layers are timed at.",
        show_default="1,8,64",
        rich_help_panel=BUNDLE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="The threads that layers are timed with.", show_default="2", rich_help_panel=BUNDLE),
]
Engines = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="The engines to choose from: scipy, numba, torch.",
        show_default="the installed ones, except torch",
        rich_help_panel=BUNDLE,
    ),
]
