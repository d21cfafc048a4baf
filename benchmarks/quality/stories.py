"""A language model, by distillation on text that it writes itself."""

from __future__ import annotations

from pathlib import Path

import torch
from resnet20 import FOLDER

from l0compress.data import Data, Split
from l0compress.pipeline.sources import prepare
from quality.cells import Grid
from quality.llama import read_checkpoint
from quality.problem import Problem, Score, Task, surprise

CHECKPOINT = FOLDER / "stories260k" / "checkpoint_legacy.bin"
LENGTH, TASTE_LENGTH = 257, 33
STORIES = {"train": 3_072, "val": 256, "test": 512}
AT_ONCE = 256


def write_stories(path: Path, taste: bool) -> None:
    """Sample the stories of all parts once, each batch from a seed of its own."""
    model = read_checkpoint(CHECKPOINT)
    length, seed, parts = TASTE_LENGTH if taste else LENGTH, 0, {}
    for name, count in STORIES.items():
        batches = []
        for _ in range(0, count, AT_ONCE):
            batches.append(model.write(AT_ONCE, length, seed=seed))
            seed += 1
        parts[name] = torch.cat(batches)[:count].to(torch.int16)
    torch.save(parts, path)


def load(path: Path) -> Problem:
    """The model, and its stories with the next token as target."""
    model = read_checkpoint(CHECKPOINT)
    tokens = {name: part.long() for name, part in torch.load(path, weights_only=True).items()}
    data = Data(
        **{name: Split((part[:, :-1].contiguous(),), part[:, 1:].contiguous()) for name, part in tokens.items()}
    )
    prepared = prepare(model, data)
    return Problem(prepared.graph, prepared.data, excluded=model.embedding.weight.numel())


STORIES260K = Task(
    title="stories260k, a Llama",
    grid=Grid("stories260k", "params", (0.7, 0.5, 0.25), (0, 10)),
    score=Score("nats per token", surprise, digits=3),
    about=(
        f"The model learns from {STORIES['train']:,} stories of {LENGTH - 1} tokens that it wrote itself, and is "
        f"judged by {STORIES['test']} others. Budgets are shares of the parameters without the embedding, which is "
        "tied to the output; *reached* counts it."
    ),
    missing=lambda: None if CHECKPOINT.exists() else f"{CHECKPOINT} does not exist",
    make_dense=write_stories,
    load=load,
)
