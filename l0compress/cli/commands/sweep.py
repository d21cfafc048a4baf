"""``l0compress sweep MODEL --data DATA --targets macs=0.5,0.25 --methods l0,fisher --seeds 0,1,2 -o SWEEP``"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from l0compress.cli.commands import finetune_options as flags
from l0compress.cli.commands import options
from l0compress.cli.commands.setting_flags import flag_name, setting_parameters
from l0compress.cli.render import messages, print_json, print_lines, print_table

_VARIED = ("target", "method", "seed")


def _option(*names: str, **facts: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Grid", **facts)


@dataclass(frozen=True)
class _Grid:
    """What is varied, and how."""

    targets: Annotated[str, _option(metavar="UNIT=NUMBER,...", help="Budgets: macs=0.5,0.25,params=0.5.")]
    output: Annotated[Path, _option("--output", "-o", metavar="SWEEP", help="A new folder, or that of this sweep.")]
    methods: Annotated[str, _option(metavar="NAME,...", help="As for --method of finetune.")] = "l0"
    seeds: Annotated[str, _option(metavar="NUMBER,...", help="Seeds of each target and method.")] = "0"
    jobs: Annotated[int | None, _option(min=1, help="Trials at a time, which share the threads; default 1.")] = None
    ray: Annotated[
        str | None,
        _option(metavar="ADDRESS", help="Run them on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT or local."),
    ] = None
    config: flags.Config = None
    as_json: options.AsJson = False


def sweep(**given: Any) -> None:
    """Compress MODEL to every target with every method and seed, each in a run folder of its own, and compare them.

    The same command goes on with a sweep that was stopped; trials that are finished are not run again.
    """
    asked = _Grid(**{field.name: given.pop(field.name) for field in fields(_Grid)})
    with options.exit_codes():
        _sweep({name: value for name, value in given.items() if value not in (None, [])}, asked)


def _parameters() -> list[Parameter]:
    kinds = get_type_hints(_Grid, include_extras=True)
    own = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.name in ("targets", "output") else field.default,
            annotation=kinds[field.name],
        )
        for field in fields(_Grid)
    ]
    return [*(one for one in setting_parameters() if one.name not in _VARIED), *own]


# As for finetune: typer reads the parameters here.
sweep.__dict__["__signature__"] = Signature(_parameters())


def _sweep(flags_given: dict[str, Any], asked: _Grid) -> None:
    from l0compress.errors import CheckError
    from l0compress.pipeline.config import checked, read_config
    from l0compress.pipeline.sweep import Sweep, grid, parse_list, parse_seeds, parse_targets_list
    from l0compress.pipeline.sweep_places import place_of
    from l0compress.pipeline.sweep_trials import run_sweep

    from_flags = {name: checked(name, value, flag_name(name)) for name, value in flags_given.items()}
    shared = {**({} if asked.config is None else read_config(asked.config)), **from_flags}
    trials = grid(parse_targets_list(asked.targets), parse_list(asked.methods, "--methods"), parse_seeds(asked.seeds))
    console = messages()

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    sweep = Sweep(asked.output, shared, trials)
    sweep.check()  # before a cluster is asked for
    with place_of(asked.ray, asked.jobs, device=str(shared.get("device", "cpu"))) as place:
        result = run_sweep(sweep, place=place, on_trial=tell)
    if asked.as_json:
        print_json(result.to_json())
    else:
        print_table(result.table())
        print_lines([f"wrote {asked.output}"])
        if result.outcomes:
            best = shlex.quote(str(result.folder / result.outcomes[0].trial.name))
            print_lines([f"Next: l0compress export {best} --format onnx"])
    if result.failed:
        raise CheckError(
            f"{len(result.failed)} of {len(trials)} trials failed; the others are kept.",
            fix="The same command runs them again; their .log files say more.",
            assurance="",
        )
