"""``l0compress finetune MODEL --data DATA --target macs=0.5``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from l0compress.cli.commands import options
from l0compress.cli.render import messages, print_json, print_lines, print_table
from l0compress.errors import RunError

if TYPE_CHECKING:
    from l0compress.pipeline.training_run import RunSummary

TRAINING = "Training"


def finetune(
    model: options.ModelPath,
    data: Annotated[str, typer.Option(help=options.DATA_HELP)],
    target: Annotated[
        str,
        typer.Option(
            metavar="UNIT=NUMBER",
            help="The budget: params, macs or bytes, as a fraction of MODEL (macs=0.5) or absolute (params=26500, "
            "macs=12M, bytes=1MB).",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN", help="A new folder.", show_default="runs/<time>-<model>"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=2, help="All epochs together.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Samples a step.", rich_help_panel=TRAINING)] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.", rich_help_panel=TRAINING)] = None,
    optimizer: Annotated[
        Literal["adamw", "sgd"] | None, typer.Option(help="For the weights.", rich_help_panel=TRAINING)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient; 0 does not clip.", rich_help_panel=TRAINING)
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            help="auto (by the targets' type), cross-entropy, mse, or PKG.MOD:FN of (outputs, targets).",
            rich_help_panel=TRAINING,
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random but the data's parts.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 autocast.", rich_help_panel=TRAINING)] = False,
    factory: options.Factory = None,
    factory_args: options.FactoryArgs = None,
    trust_pickle: options.TrustPickle = False,
    target_column: options.TargetColumn = None,
    tokenizer: options.Tokenizer = None,
    max_length: options.MaxLength = None,
    image_size: options.ImageSize = None,
    normalize: options.Normalize = None,
    no_labels: options.NoLabels = False,
    split: options.Shares = options.DEFAULT_SHARES,
    data_seed: options.DataSeed = 0,
    workers: options.Workers = 0,
    threads: options.Threads = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run. Refused for now: runs leave no checkpoints.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Compress MODEL to the target, fine-tuning on DATA, and leave everything in a run folder."""
    with options.exit_codes():
        if resume:
            raise RunError("Runs leave no checkpoints to resume from. Nothing was changed. Start the run again.")
        described = {
            "target_column": target_column, "tokenizer": tokenizer, "max_length": max_length, "image_size": image_size,
            "normalize": normalize, "no_labels": no_labels, "split": split, "data_seed": data_seed, "workers": workers,
            "batch_size": batch_size,
        }  # fmt: skip
        from l0compress.cli.progress import ProgressDisplay
        from l0compress.loading import ModelSource, parse_factory_args, parse_target
        from l0compress.pipeline.training_run import RunRequest, finetune_run

        options.use_threads(threads)
        flags = {
            "epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "optimizer": optimizer, "clip": clip,
            "seed": seed, "device": device, "bf16": bf16,
        }  # fmt: skip
        request = RunRequest(
            source=ModelSource(model, factory, trust_pickle, parse_factory_args(factory_args)),
            data=options.data_source(data, model, described),
            target=parse_target(target),
            loss=loss,
            output=output,
            settings=_given(flags),
        )
        with ProgressDisplay(messages()) as display:
            summary = finetune_run(request, on_event=display.show)
        if as_json:
            print_json(summary.to_json())
        else:
            _print(summary)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("clip") == 0:
        given["clip"] = None
    return given


def _print(summary: RunSummary) -> None:
    print_table(summary.table())
    print_lines([f"wrote {summary.folder}", f"Next: l0compress export {summary.folder} --format onnx"])
