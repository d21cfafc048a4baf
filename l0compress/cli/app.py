"""The application: its commands, and one place where errors become a message and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from types import TracebackType
from typing import Annotated

import typer

from l0compress.cli import commands
from l0compress.cli.commands.options import say_last

TRACEBACK_VARIABLE = "L0COMPRESS_TRACEBACK"

app = typer.Typer(
    name="l0compress",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in commands.ALL:
    app.command()(command)


def print_version(asked: bool) -> None:
    """Print the versions and leave, before a missing command is complained about."""
    if asked:
        from l0compress.cli.versions import versions  # what has to read files, no other command needs

        sys.stdout.writelines(f"{name} {version}\n" for name, version in versions())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print versions and machine, and exit.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Compress a trained PyTorch model to a budget by constrained L0 fine-tuning, and prove what came out."""
    del version


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a check failed, 2 wrong input, 130 and 143 stopped by a signal."""
    if not os.environ.get(TRACEBACK_VARIABLE):
        sys.excepthook = _one_line
    if not sys.warnoptions:
        # What torch and onnxscript have to tell their own developers is nothing that a user here can act on.
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
    typer.main.get_command(app)(prog_name="l0compress")


def _one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    # Python has unwound everything by now, so what was half-written is gone, and it exits with 1 after this.
    del traceback
    lines = str(error).strip().splitlines()
    message = (
        f"Unexpected {kind.__name__}: {lines[0] if lines else 'no message'}. This is a defect of l0compress; please "
        f"report it with the traceback, which {TRACEBACK_VARIABLE}=1 shows.\n"
    )
    say_last(lambda: sys.stderr.write(message))
