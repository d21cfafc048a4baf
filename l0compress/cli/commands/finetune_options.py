"""The flags of ``l0compress finetune``, in groups. None stands for a flag that was not given: the file or the default
holds then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from l0compress.cli.commands import options

TRAINING, RUN = "Training", "Run"

Model = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        help="A .pt2 file of torch.export.save, weights (.pt, .pth, .th, .ckpt, .safetensors) with --factory, an .onnx "
        "file, or a folder of Hugging Face transformers. With --resume: a run folder.",
        show_default=False,
    ),
]
Data = Annotated[str | None, typer.Option(help=options.DATA_HELP)]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="UNIT=NUMBER",
        help="The budget: params, macs, bytes, or int8-bytes (of the file that export --quantize writes), as a "
        "fraction of MODEL (macs=0.5) or absolute (params=26500, macs=12M, bytes=1MB).",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random but the data's parts.", show_default="0")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...", show_default="cpu")]

Method = Annotated[
    Literal["l0", "fisher", "magnitude", "layer-magnitude"] | None,
    typer.Option(
        help="What decides: learned gates (l0), a score of channels (fisher, magnitude), or of single weights "
        "(magnitude, layer-magnitude).",
        show_default="l0",
    ),
]
Granularity = Annotated[
    Literal["structured", "weights", "both"] | None,
    typer.Option(
        help="What may go: channels, heads and units (structured), single weights, which become zero (weights), or "
        "both. With single weights the target counts what is not zero.",
        show_default="structured",
    ),
]
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
        help="Go on with an unfinished run: finetune --resume RUN, or with -o RUN and the flags that it began with "
        "(which begins it if it is not there). Without either, the newest under ./runs.",
        rich_help_panel=RUN,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A TOML file with any of these settings; flags win over it.", rich_help_panel=RUN
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print every setting in force as TOML, and do nothing.", rich_help_panel=RUN),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="STEPS",
        help="Steps between two snapshots to resume from.",
        show_default="by time: half a minute or more",
        rich_help_panel=RUN,
    ),
]

Epochs = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="All epochs together; 0 decides and repairs without training, on a few hundred samples.",
        show_default="48",
        rich_help_panel=TRAINING,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=2, help="Samples a step.", show_default="by the number of samples", rich_help_panel=TRAINING),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Highest learning rate.", show_default="by the network and the length", rich_help_panel=TRAINING),
]
Optimizer = Annotated[
    Literal["adamw", "sgd"] | None,
    typer.Option(help="For the weights.", show_default="adamw", rich_help_panel=TRAINING),
]
Clip = Annotated[
    float | None,
    typer.Option(help="Largest norm of the gradient; 0 does not clip.", show_default="1.0", rich_help_panel=TRAINING),
]
Loss = Annotated[
    str | None,
    typer.Option(
        help="auto (by the targets' type), cross-entropy, bce, mse, or PKG.MOD:FN of (outputs, targets).",
        show_default="auto",
        rich_help_panel=TRAINING,
    ),
]
Bf16 = Annotated[bool | None, typer.Option("--bf16/--no-bf16", help="bfloat16 autocast.", rich_help_panel=TRAINING)]
QuantizationAware = Annotated[
    bool | None,
    typer.Option(
        "--quantization-aware/--no-quantization-aware",
        help="Round in the last phase what export --quantize will round, so that weights learn to bear it.",
        rich_help_panel=TRAINING,
    ),
]
InputDropout = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Of the elements of flat inputs (n, features), dropped in training; other inputs are left alone.",
        show_default="0.1 from 64 features on, 0 of fewer",
        rich_help_panel=TRAINING,
    ),
]
