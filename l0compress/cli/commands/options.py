"""Arguments and options that several commands share, and the frame that every command runs in."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l0compress.cli.commands.setting_flags import flag_name, setting_flag
from l0compress.cli.render import print_error
from l0compress.cli.signals import INTERRUPTED, TERMINATED, Terminated, sigterm_unwinds
from l0compress.errors import InputError, L0Error, StoppedError
from l0compress.pipeline.options import OPTIONS
from l0compress.training.launch import says_several
from l0compress.workers import let_workers_go

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
Artifact = Annotated[
    Path,
    typer.Argument(
        metavar="ARTIFACT", help="An .onnx, .pt2 or .l0c file of l0compress export, or a folder of transformers."
    ),
]
DATA_HELP = OPTIONS["data"].help
Factory = Annotated[str | None, setting_flag("factory")]
FactoryArgs = Annotated[str | None, setting_flag("factory_args")]
TrustPickle = Annotated[bool, setting_flag("trust_pickle")]
Fixed = Annotated[bool, setting_flag("fixed")]
TargetColumn = Annotated[str | None, setting_flag("target_column")]
Tokenizer = Annotated[str | None, setting_flag("tokenizer")]
MaxLength = Annotated[int | None, setting_flag("max_length")]
ImageSize = Annotated[int | None, setting_flag("image_size")]
Normalize = Annotated[str | None, setting_flag("normalize")]
NoLabels = Annotated[bool, setting_flag("no_labels")]
Shares = Annotated[str | None, setting_flag("split")]
Stratify = Annotated[bool, setting_flag("stratify")]
DataSeed = Annotated[int | None, setting_flag("data_seed")]
Workers = Annotated[int | None, setting_flag("workers")]
Keep = Annotated[list[str] | None, setting_flag("keep")]
MinDensity = Annotated[list[str] | None, setting_flag("min_density")]
Provider = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What runs ONNX files: cpu, another provider of the installed ONNX Runtime such as cuda, or openvino.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, nothing else.")]


def check_described(given: Mapping[str, Any]) -> None:
    """Refuse options that say how data are read where none are named.

    Raises:
        InputError: one of them was given.
    """
    for name, value in given.items():
        if value is not None and value is not False:
            raise InputError(
                f"{flag_name(name)} applies to --data, but there is no --data.",
                fix="Give the data too, or omit it.",
            )


def data_source(name: str, model: Path, given: Mapping[str, Any]) -> DataSource:
    """The data that the options describe, which are given by their names in a configuration file; None is not given.

    Raises:
        InputError: one of them is out of range, or a text is malformed.
    """
    from l0compress.pipeline.config import checked, complete
    from l0compress.pipeline.requests import data_source as described

    named = {option: checked(option, value, flag_name(option)) for option, value in given.items() if value is not None}
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
        _say(str(error))
        raise typer.Exit(error.exit_code) from error
    except Terminated as error:
        let_workers_go()
        _say("terminated; nothing half-written is left.")
        raise typer.Exit(TERMINATED) from error
    except KeyboardInterrupt as error:
        let_workers_go()
        _say("interrupted; nothing half-written is left.")
        raise typer.Exit(INTERRUPTED) from error


def _say(message: str) -> None:
    """Print an error."""
    say_last(lambda: print_error(message))


def say_last(say: Callable[[], object]) -> None:
    """Call ``say``; where several processes end by the same, in one of them."""
    if not says_several():
        say()
        return
    from l0compress.training import processes

    with suppress(ValueError):  # signals are for the main thread
        # A launcher ends the others as soon as one has ended, and not all has been said yet.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    processes.say_last(say)


def use_threads(threads: int | None) -> None:
    """Limit the threads of torch, where a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def batch_sizes(text: str) -> tuple[int, ...]:
    """The batch sizes in ``1,8,64``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--batch {text!r} is not a list of batch sizes. Write for example --batch 1,8,64.")
    return tuple(int(part) for part in parts)
