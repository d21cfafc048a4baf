"""The flags of ``l0compress finetune`` that are no settings: where a run goes, and what is done instead of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN = "Run"

Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="RUN", help="A new folder.", show_default="runs/<time>-<model>", rich_help_panel=RUN
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume an unfinished run: finetune --resume RUN, or -o RUN with its original flags (which starts it if "
        "it does not exist). Without either, the newest under ./runs.",
        rich_help_panel=RUN,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A TOML file with any of these settings; flags override it.", rich_help_panel=RUN
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print every setting in force as TOML, and do nothing.", rich_help_panel=RUN),
]
ConfigSchema = Annotated[
    bool,
    typer.Option("--config-schema", help="Print the JSON Schema of such a file, and do nothing.", rich_help_panel=RUN),
]
