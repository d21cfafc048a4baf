"""A table of text: what the command line draws, a README quotes and ``--json`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it shows.
        columns: headings.
        rows: cells, one text a column.
        notes: sentences to print below.

    Example:
        >>> print(Table("Sizes", ("model", "bytes"), (("dense", "40"), ("small", "8"))).to_markdown())
        **Sizes**
        <BLANKLINE>
        | model | bytes |
        |---|---:|
        | dense | 40 |
        | small | 8 |
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown, its first column flush left and the others flush right."""
        rule = "|".join(["---", *["---:"] * (len(self.columns) - 1)])
        lines = [_markdown_row(self.columns), f"|{rule}|", *(_markdown_row(row) for row in self.rows)]
        heading = [f"**{self.title}**", ""] if self.title else []
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([*heading, *lines, *notes])

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``: each row as an object by column."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}


def _markdown_row(cells: tuple[str, ...]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
