"""``l0compress verify ARTIFACT --against RUN``"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from l0compress.cli.commands import options
from l0compress.cli.render import messages, print_json, print_next, print_table


def verify(
    artifact: options.Artifact,
    against: Annotated[Path, typer.Option(metavar="RUN", help="The run folder that ARTIFACT was exported from.")],
    provider: options.Provider = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Check that ARTIFACT computes what the masked dense model of RUN computes. Exits 1 if it does not."""
    with options.exit_codes():
        from l0compress.cli.bar import Bar
        from l0compress.measure.report import equality_table
        from l0compress.pipeline.artifacts import verify_artifact

        with Bar(messages()):
            verification = verify_artifact(artifact, run=against, provider=provider)
        if as_json:
            print_json(verification.to_json())
            return
        verdict = f"Equal up to {verification.quantization}" if verification.quantization else "Equal"
        title = f"{verdict}: {artifact} and the masked dense model of {against}"
        print_table(equality_table(verification.equality, title=title))
        print_next(f"l0compress bench {shlex.quote(str(artifact))} --against {shlex.quote(str(against))}")
