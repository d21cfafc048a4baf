"""``l0compress finetune MODEL --data DATA --target macs=0.5``"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0compress.cli.commands import finetune_options as flags
from l0compress.cli.commands import options
from l0compress.cli.render import messages, print_json, print_lines, print_table
from l0compress.errors import RunError

if TYPE_CHECKING:
    from l0compress.pipeline.training_run import RunSummary


@dataclass(frozen=True)
class _Mode:
    """What is done with the settings."""

    output: Path | None
    config: Path | None
    print_config: bool
    resume: bool
    as_json: bool


def finetune(
    model: flags.Model = None,
    data: flags.Data = None,
    target: flags.Target = None,
    method: flags.Method = None,
    granularity: flags.Granularity = None,
    output: flags.Output = None,
    resume: flags.Resume = False,
    checkpoint_every: flags.CheckpointEvery = None,
    config: flags.Config = None,
    print_config: flags.PrintConfig = False,
    epochs: flags.Epochs = None,
    batch_size: flags.BatchSize = None,
    lr: flags.LearningRate = None,
    optimizer: flags.Optimizer = None,
    clip: flags.Clip = None,
    loss: flags.Loss = None,
    bf16: flags.Bf16 = None,
    quantization_aware: flags.QuantizationAware = None,
    input_dropout: flags.InputDropout = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    factory: options.Factory = None,
    factory_args: options.FactoryArgs = None,
    trust_pickle: options.TrustPickle = False,
    fixed: options.Fixed = False,
    target_column: options.TargetColumn = None,
    tokenizer: options.Tokenizer = None,
    max_length: options.MaxLength = None,
    image_size: options.ImageSize = None,
    normalize: options.Normalize = None,
    no_labels: options.NoLabels = False,
    split: options.Shares = None,
    data_seed: options.DataSeed = None,
    workers: options.Workers = None,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Compress MODEL to the target, fine-tuning on DATA, and leave everything in a run folder.

    The folder is fit to go on from at any moment: Ctrl-C stops a run, finetune --resume RUN goes on with it.
    """
    named = {
        "model": _text(model), "factory": factory, "factory_args": factory_args, "trust_pickle": trust_pickle or None,
        "fixed": fixed or None, "data": data, "target": target,
        "method": method, "granularity": granularity, "seed": seed, "device": device, "threads": threads,
        "checkpoint_every": checkpoint_every, "epochs": epochs, "batch_size": batch_size, "lr": lr,
        "optimizer": optimizer, "clip": clip, "loss": loss, "bf16": bf16, "input_dropout": input_dropout,
        "quantization_aware": quantization_aware,
        "target_column": target_column, "tokenizer": _text(tokenizer), "max_length": max_length,
        "image_size": image_size, "normalize": normalize, "no_labels": no_labels or None, "split": split,
        "data_seed": data_seed, "workers": workers,
    }  # fmt: skip
    with options.exit_codes():
        given = {name: value for name, value in named.items() if value is not None}
        _finetune(given, _Mode(output, config, print_config, resume, as_json))


def _finetune(flags_given: dict[str, Any], mode: _Mode) -> None:
    from l0compress.pipeline.config import checked, complete, config_text, read_config

    from_flags = {name: checked(name, value, _flag(name)) for name, value in flags_given.items()}
    given = {**({} if mode.config is None else read_config(mode.config)), **from_flags}
    if mode.print_config:
        sys.stdout.write(config_text(complete(given)))
        return
    summary = _run(given, mode)
    if mode.as_json:
        print_json(summary.to_json())
        return
    print_table(summary.table())
    print_lines([f"wrote {summary.folder}", f"Next: l0compress export {summary.folder} --format onnx"])


def _run(given: dict[str, Any], mode: _Mode) -> RunSummary:
    from l0compress.cli.progress import ProgressDisplay
    from l0compress.pipeline.requests import request_of
    from l0compress.pipeline.training_run import finetune_run, resume_run

    folder, settings = _to_resume(given, mode) if mode.resume else (None, given)
    with ProgressDisplay(messages()) as display:
        if folder is None:
            return finetune_run(request_of(settings, output=mode.output), on_event=display.show)
        return resume_run(folder, given=settings, on_event=display.show)


def _to_resume(given: Mapping[str, Any], mode: _Mode) -> tuple[Path | None, dict[str, Any]]:
    """The run to go on with, None where it has yet to begin, and the settings without it."""
    from l0compress.pipeline.runs import is_run, newest_unfinished

    model = given.get("model")
    if model is not None and mode.output is None:
        if not is_run(Path(model)):
            raise RunError(
                f"{model!r} is no run to go on with. Nothing was changed. Name its folder: l0compress finetune "
                f"--resume RUN, or -o RUN beside the model."
            )
        return Path(model), {name: value for name, value in given.items() if name != "model"}
    if mode.output is None:
        return newest_unfinished(), dict(given)
    begun = is_run(mode.output) or model is None
    return (mode.output if begun else None), dict(given)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _flag(name: str) -> str:
    return "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
