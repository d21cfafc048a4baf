"""Arguments and options that several commands share, and the frame that every command runs in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l0compress.cli.render import print_error
from l0compress.cli.signals import INTERRUPTED, TERMINATED, Terminated, let_workers_go, sigterm_unwinds
from l0compress.errors import InputError, L0Error, StoppedError

if TYPE_CHECKING:
    from l0compress.loading import DataSource

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A .pt2 file of torch.export.save, weights (.pt, .pth, .th, .ckpt, .safetensors) with --factory, an .onnx "
        "file, or a folder of Hugging Face transformers.",
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An .onnx, .pt2 or .l0c file of l0compress export.")]
Factory = Annotated[
    str | None,
    typer.Option(metavar="PKG.MOD:FN", help="Builds the module that the weights belong to."),
]
FactoryArgs = Annotated[
    str | None, typer.Option(metavar="JSON", help="""Keyword arguments of the factory, such as '{"width": 64}'.""")
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Allow unpickling, which runs any code that is in the file.")
]
Fixed = Annotated[
    bool,
    typer.Option(
        "--fixed", help="Take sequences as long as the data's only. Any length is the default, where MODEL takes any."
    ),
]
DATA_HELP = (
    "'digits', an .npz file (x_train y_train ..., or x y), a folder of images, a .csv, sentences (.tsv), or PKG.MOD:FN "
    "that returns the parts."
)
DATA_PANEL = "Data"
TargetColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The column of a .csv to predict.", rich_help_panel=DATA_PANEL)
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Makes numbers of sentences; by default MODEL's own.", rich_help_panel=DATA_PANEL
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens a sentence.", show_default="the longest, up to 128", rich_help_panel=DATA_PANEL),
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Bring images to this height and width.", rich_help_panel=DATA_PANEL)
]
Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="MEAN/STD",
        help="Of each channel of images: 0.5,0.5,0.5/0.2,0.2,0.2, or imagenet.",
        rich_help_panel=DATA_PANEL,
    ),
]
NoLabels = Annotated[
    bool,
    typer.Option(
        "--no-labels", help="Leave the labels out: the dense model alone is the teacher.", rich_help_panel=DATA_PANEL
    ),
]
Shares = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="TRAIN,VAL,TEST",
        help="Shares of the parts, where data come in one piece.",
        show_default="0.6,0.2,0.2",
        rich_help_panel=DATA_PANEL,
    ),
]
DataSeed = Annotated[
    int | None, typer.Option(min=0, help="Of the data's parts.", show_default="0", rich_help_panel=DATA_PANEL)
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="That decode images.", show_default="0", rich_help_panel=DATA_PANEL)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, nothing else.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")]


def check_described(given: Mapping[str, Any]) -> None:
    """Refuse options that say how data are read where none are named.

    Raises:
        InputError: one of them was given.
    """
    for name, value in given.items():
        if value is not None and value is not False:
            raise InputError(
                f"--{name.replace('_', '-')} says how --data is read, and there is no --data. Nothing was changed. "
                "Name the data too, or leave it out."
            )


def data_source(name: str, model: Path, given: Mapping[str, Any]) -> DataSource:
    """The data that the options describe, which are given by their names in a configuration file; None is not given.

    Raises:
        DataError: a text among them is malformed.
    """
    from l0compress.pipeline.config import complete
    from l0compress.pipeline.requests import data_source as described

    named = {option: value for option, value in given.items() if value is not None}
    return described(complete({**named, "data": name, "model": str(model)}))


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what the package raises on purpose, Ctrl-C and SIGTERM into one message and an exit code."""
    try:
        with sigterm_unwinds():
            yield
    except L0Error as error:
        if isinstance(error, StoppedError):
            let_workers_go()
        print_error(str(error))
        raise typer.Exit(error.exit_code) from error
    except Terminated as error:
        let_workers_go()
        print_error("terminated; nothing half-written is left.")
        raise typer.Exit(TERMINATED) from error
    except KeyboardInterrupt as error:
        let_workers_go()
        print_error("interrupted; nothing half-written is left.")
        raise typer.Exit(INTERRUPTED) from error


def use_threads(threads: int | None) -> None:
    """Limit the threads of torch, where a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def batch_sizes(text: str) -> tuple[int, ...]:
    """The batch sizes in ``1,8,64``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--batch {text!r} is no list of batch sizes. Write for example --batch 1,8,64.")
    return tuple(int(part) for part in parts)
