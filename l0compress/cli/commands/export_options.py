"""The flags of ``l0compress export``, in groups by the format that they are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from l0compress.cli.commands.setting_flags import completing
from l0compress.errors import NOTHING_WRITTEN, InputError, did_you_mean
from l0compress.old_names import FORMATS

if TYPE_CHECKING:
    from l0compress.export.half import Half
    from l0compress.export.quantize import Int8

CHOICES = ("onnx", "bundle", "pt2", "huggingface")
ONNX, BUNDLE, BOTH = "For onnx", "For bundle", "For onnx and bundle"


def _format(text: str) -> str:
    name = FORMATS.get(text, text)
    if name not in CHOICES:
        meant = did_you_mean(name, CHOICES)
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, CHOICES))}. {meant}".rstrip())
    return name


RunFolder = Annotated[
    Path | None, typer.Argument(metavar="[RUN]", help="A run folder.", show_default="the newest under ./runs")
]
Format = Annotated[
    str,
    typer.Option(
        parser=_format,
        metavar=f"[{'|'.join(CHOICES)}]",
        autocompletion=completing(CHOICES),
        help="The kind of artifact; a bundle has sparse layers and runs without torch, huggingface is a folder that "
        "from_pretrained reads.",
    ),
]
Member = Annotated[
    str | None,
    typer.Option(metavar="TARGET", help="Of a family: one member, such as macs=0.4.", show_default="all of them"),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="PATH", help="The file or folder to write.", show_default="RUN/model.<format>"
    ),
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
WithPast = Annotated[
    bool,
    typer.Option(
        "--with-past",
        help="Of a causal language model from a Hugging Face folder: past key values go in and out, to generate with.",
        rich_help_panel=ONNX,
    ),
]
Opset = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="The version of ONNX's operators.",
        show_default="18 or 20, which runs widely",
        rich_help_panel=ONNX,
    ),
]
Storage = Annotated[
    Literal["float32", "float16", "bfloat16", "int8"] | None,
    typer.Option(
        "--dtype",
        help="How weights are stored; int8 for sparse layers, with one scale per output. An ONNX file also computes in "
        "float16; the score before and after is printed.",
        show_default="float32",
        rich_help_panel=BOTH,
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


@dataclass(frozen=True)
class Timed:
    """The flags of how a bundle's layers are timed."""

    batch_sizes: tuple[int, ...] | None
    threads: int | None
    engines: str | None


@dataclass(frozen=True)
class Rounded:
    """The flags of how numbers are rounded."""

    format: str
    quantize: str | None
    calibrate: int | None
    dtype: str | None

    def rounding(self) -> Int8 | Half | None:
        """How an ONNX file is rounded; None where it is not, or where the file is of another format.

        Raises:
            InputError: flags that exclude each other.
        """
        from l0compress.export.half import Half
        from l0compress.export.quantize import Int8

        self._check()
        if self.quantize is not None:
            method = self.quantize.removeprefix("int8").removeprefix("-") or "auto"
            return Int8(method) if self.calibrate is None else Int8(method, num_samples=self.calibrate)
        if self.format != "onnx" or self.dtype in (None, "float32"):
            return None
        return Half(self.dtype)

    def _check(self) -> None:
        if self.calibrate is not None and self.quantize in (None, "int8-dynamic"):
            why = "the file is not quantized" if self.quantize is None else "dynamic int8 needs none"
            raise InputError(
                f"--calibrate sets the number of samples for calibrating static int8, but {why}.",
                fix="Pass --quantize int8-static, or omit it.",
                assurance=NOTHING_WRITTEN,
            )
        if self.format != "onnx" or self.dtype in (None, "float32"):
            return
        if self.dtype == "int8":
            raise InputError(
                "--dtype int8 is for bundles: of an ONNX file weights and products become int8 together.",
                fix="Pass --quantize int8.",
                assurance=NOTHING_WRITTEN,
            )
        if self.quantize is not None:
            raise InputError(
                f"--quantize {self.quantize} and --dtype {self.dtype} exclude each other.",
                fix="Omit one of the two.",
                assurance=NOTHING_WRITTEN,
            )
