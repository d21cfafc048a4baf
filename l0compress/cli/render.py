"""Values on the terminal: results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from l0compress.measure.table import Table

PIPED_WIDTH = 140
_UNBOUNDED = 10_000


def output() -> Console:
    """The console of results."""
    return _console(stderr=False)


def messages() -> Console:
    """The console of messages and progress."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    # The stream as it is now: what a capture prints is silenced by putting another in its place for a while.
    file = sys.stderr if stderr else sys.stdout
    console = Console(file=file, stderr=stderr, highlight=False)
    # Where nobody looks, nothing is to be wrapped: rich would assume 80 columns.
    return console if console.is_terminal else Console(file=file, stderr=stderr, highlight=False, width=PIPED_WIDTH)


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
    unbounded = console.options.update(max_width=_UNBOUNDED)
    if console.is_terminal and Measurement.get(console, unbounded, rich_table).maximum > console.width:
        # Without the lines it is narrower, and what is still too wide goes on two lines instead of breaking in words.
        _print_rows(console, (table.columns, *table.rows), [position > 0 for position in range(len(table.columns))])
    else:
        console.print(rich_table)
    print_notes(table.notes)


def print_notes(notes: Iterable[str]) -> None:
    """Sentences on standard output, broken between words where a terminal is too narrow for one."""
    console = output()
    for note in notes:
        console.print(Text(note), soft_wrap=not console.is_terminal)


def print_next(command: str) -> None:
    """What to type next, in one piece, so that it can be copied."""
    print_lines([f"Next: {command}"])


def print_lines(lines: Iterable[str]) -> None:
    """Plain lines on standard output."""
    console = output()
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_listing(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str]) -> None:
    """Aligned columns without lines; those named in ``numbers`` are set flush right.

    Where the terminal is too narrow for a row, its first cell gets a line of its own.
    """
    console = output()
    cells = [list(columns), *(list(row) for row in rows)]
    console.print(Text(title, style="bold"), soft_wrap=True)
    _print_rows(console, cells, [column in numbers for column in columns])


def _print_rows(console: Console, rows: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    lines = listing(rows, right, console.width if console.is_terminal else None)
    for position, line in enumerate(lines):
        console.print(Text(line, style="dim" if position == 0 else ""), soft_wrap=True)


def listing(rows: Sequence[Sequence[str]], right: Sequence[bool], width: int | None) -> list[str]:
    """Rows as lines of text in aligned columns, two lines a row where one would be longer than ``width``.

    Examples:
        >>> rows = [["name", "count"], ["a.rather.long.name", "12"], ["b", "3"]]
        >>> print("\\n".join(listing(rows, [False, True], None)))
          name                count
          a.rather.long.name     12
          b                       3
        >>> print("\\n".join(listing(rows, [False, True], 20)))
          name
            count
          a.rather.long.name
               12
          b
                3
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(right))]
    padded = [
        [cell.rjust(size) if flush else cell.ljust(size) for cell, size, flush in zip(row, widths, right, strict=True)]
        for row in rows
    ]
    if width is None or 2 * len(widths) + sum(widths) <= width:
        return [("  " + "  ".join(row)).rstrip() for row in padded]
    return [line.rstrip() for row in padded for line in ("  " + row[0], "    " + "  ".join(row[1:]))]
