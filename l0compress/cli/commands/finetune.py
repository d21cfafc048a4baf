"""``l0compress finetune MODEL --data DATA --target macs=0.5``"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from l0compress.cli.commands import finetune_options as flags
from l0compress.cli.commands import options
from l0compress.cli.commands.setting_flags import flag_name, setting_parameters
from l0compress.cli.render import messages, print_json, print_lines, print_next, print_table
from l0compress.errors import RunError

if TYPE_CHECKING:
    from l0compress.pipeline.family_run import FamilySummary
    from l0compress.pipeline.training_run import RunSummary


@dataclass(frozen=True)
class _Mode:
    """What is done with the settings."""

    output: flags.Output = None
    resume: flags.Resume = False
    config: flags.Config = None
    print_config: flags.PrintConfig = False
    config_schema: flags.ConfigSchema = False
    as_json: options.AsJson = False


def finetune(**given: Any) -> None:
    """Compress MODEL to the target, fine-tuning on DATA, and leave everything in a run folder.

    The folder is fit to go on from at any moment: Ctrl-C stops a run, finetune --resume RUN goes on with it.
    """
    mode = _Mode(**{field.name: given.pop(field.name) for field in fields(_Mode)})
    with options.exit_codes():
        _finetune({name: value for name, value in given.items() if value not in (None, [])}, mode)


def _parameters() -> list[Parameter]:
    kinds = get_type_hints(_Mode, include_extras=True)
    modes = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[field.name])
        for field in fields(_Mode)
    ]
    return [*setting_parameters(), *modes]


# The command has a parameter for every row of the schema that has a flag, and typer reads them here.
finetune.__dict__["__signature__"] = Signature(_parameters())


def _finetune(flags_given: dict[str, Any], mode: _Mode) -> None:
    from l0compress.pipeline.config import checked, complete, config_schema, config_text, read_config

    if mode.config_schema:
        print_json(config_schema())
        return
    from_flags = {name: checked(name, value, flag_name(name)) for name, value in flags_given.items()}
    given = {**({} if mode.config is None else read_config(mode.config)), **from_flags}
    if mode.print_config:
        sys.stdout.write(config_text(complete(given)))
        return
    summary = _run(given, mode)
    if summary is None:
        return
    if mode.as_json:
        print_json(summary.to_json())
        return
    print_table(summary.table())
    print_lines([f"wrote {summary.folder}"])
    print_next(f"l0compress export {shlex.quote(str(summary.folder))} --format onnx")


def _run(given: dict[str, Any], mode: _Mode) -> RunSummary | FamilySummary | None:
    """What came of the run; None in a process beside the first, which speaks for all."""
    from l0compress.cli.progress import ProgressDisplay
    from l0compress.pipeline.family_run import finetune_family_run, resume_family_run
    from l0compress.pipeline.requests import request_of
    from l0compress.pipeline.runs import is_family
    from l0compress.pipeline.training_run import finetune_run, resume_run
    from l0compress.training.processes import joined

    def to_resume() -> tuple[Path | None, dict[str, Any], bool]:
        folder, settings = _to_resume(given, mode) if mode.resume else (None, given)
        return folder, settings, folder is not None and is_family(folder)

    processes = joined()
    folder, settings, family = processes.from_first(to_resume)
    with ProgressDisplay(messages(), shown=processes.is_first) as display:
        if folder is None:
            request = request_of(settings, output=mode.output)
            begin = finetune_family_run if request.family else finetune_run
            summary = begin(request, on_event=display.show)
        else:
            resume = resume_family_run if family else resume_run
            summary = resume(folder, given=settings, on_event=display.show)
    processes.leave_()
    return summary if processes.is_first else None


def _to_resume(given: Mapping[str, Any], mode: _Mode) -> tuple[Path | None, dict[str, Any]]:
    """The run to go on with, None where it has yet to begin, and the settings without it."""
    from l0compress.pipeline.runs import is_run, newest_unfinished

    model = given.get("model")
    if model is not None and mode.output is None:
        if not is_run(Path(model)):
            raise RunError(
                f"{model!r} is not a run that can be resumed.",
                fix="Name the run's folder: l0compress finetune --resume RUN, or -o RUN beside the model.",
            )
        return Path(model), {name: value for name, value in given.items() if name != "model"}
    if mode.output is None:
        return newest_unfinished(), dict(given)
    begun = is_run(mode.output) or model is None
    return (mode.output if begun else None), dict(given)
