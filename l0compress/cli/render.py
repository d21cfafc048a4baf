"""Values on the terminal: results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from l0compress.report import Table

PIPED_WIDTH = 140


def output() -> Console:
    """The console of results."""
    return _console(stderr=False)


def messages() -> Console:
    """The console of messages and progress."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    # Where nobody looks, nothing is to be wrapped: rich would assume 80 columns.
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PIPED_WIDTH)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_error(message: str) -> None:
    """One message on standard error, as it is: no markup, no wrapping in the middle of a path."""
    console = messages()
    console.print(Text("Error: ", style="bold red") + Text(message, style="default"), soft_wrap=True)


def print_table(table: Table) -> None:
    """A table with its notes on standard output."""
    console = output()
    if table.title:
        console.print(Text(table.title, style="bold"), soft_wrap=True)
    rich_table = RichTable(header_style="bold")
    for position, column in enumerate(table.columns):
        rich_table.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    for row in table.rows:
        rich_table.add_row(*(Text(cell) for cell in row))
    console.print(rich_table)
    print_lines(table.notes)


def print_lines(lines: Iterable[str]) -> None:
    """Plain lines on standard output."""
    console = output()
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_columns(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str]) -> None:
    """A plain table whose columns named in ``numbers`` are set flush right."""
    console = output()
    console.print(Text(title, style="bold"), soft_wrap=True)
    rich_table = RichTable(header_style="bold")
    for column in columns:
        rich_table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        rich_table.add_row(*(Text(cell) for cell in row))
    console.print(rich_table)
