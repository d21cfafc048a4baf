"""Flags of settings, made of the rows of the one schema, :data:`~l0compress.pipeline.options.OPTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Annotated, Any

import typer

from l0compress.pipeline.options import OPTIONS
from l0compress.training.schema import Setting


def setting_flag(name: str) -> Any:
    """Return the typer option of a setting. Its value is checked where values in files are, not by typer."""
    row = OPTIONS[name]
    flag = flag_name(name)
    declared = [f"{flag}/--no-{flag[2:]}"] if row.kind is bool and not row.one_way else [flag]
    return typer.Option(
        *declared,
        metavar=_metavar(row),
        help=_help(row),
        show_default=_default(row),
        rich_help_panel=row.panel,
        autocompletion=completing(row.names) if row.names else None,
    )


def completing(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what a shell asks for the names that begin as the word that is being typed.

    >>> completing(["l0", "fisher"])("f")
    ['fisher']
    """

    def begins(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return begins


def setting_parameters() -> list[Parameter]:
    """Return a parameter of a command for every setting that has a flag; None stands for one that was not given."""
    shown = sorted((row for row in OPTIONS.values() if row.help), key=lambda row: not row.needed)
    return [
        Parameter(
            row.key, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[_kind(row) | None, _declared(row)]
        )
        for row in shown
    ]


def flag_name(name: str) -> str:
    """Return what is typed to give a setting."""
    return "MODEL" if name == "model" else f"--{name.replace('_', '-')}"


def _kind(row: Setting) -> Any:
    return list[row.kind] if row.many else row.kind


def _declared(row: Setting) -> Any:
    if row.key == "model":
        return typer.Argument(metavar=row.metavar, help=row.help, show_default=False)
    return setting_flag(row.key)


def _metavar(row: Setting) -> str | None:
    return f"[{'|'.join(row.names)}]" if row.names and not row.or_reference else row.metavar


def _help(row: Setting) -> str:
    bounds = "" if row.names else row.written.expected
    return f"{row.help.removesuffix('.')} ({bounds})." if bounds else row.help


def _default(row: Setting) -> str | bool:
    if row.default is None:
        nothing = row.needed or row.absent.startswith("none")
        return False if nothing else row.absent
    return False if row.kind is bool else str(row.default)
