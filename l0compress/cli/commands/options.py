"""Arguments and options that several commands share, and the frame that every command runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from l0compress.cli.render import print_error
from l0compress.errors import InputError, L0Error

INTERRUPTED = 130

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A .pt2 file of torch.export.save, or weights (.pt, .pth, .th, .safetensors) with --factory.",
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An .onnx, .pt2 or .l0c file of l0compress export.")]
Factory = Annotated[
    str | None,
    typer.Option(metavar="PKG.MOD:FN", help="Builds the module that the weights belong to; called without arguments."),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Allow unpickling, which runs any code that is in the file.")
]
DATA_HELP = "'digits', an .npz file (x_train y_train ..., or x y), or PKG.MOD:FN that returns the parts."
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, nothing else.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what the package raises on purpose, and Ctrl-C, into one message and an exit code."""
    try:
        yield
    except L0Error as error:
        print_error(str(error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
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
