"""Plain training, without gates and teacher: what the dense models of the benchmarks get."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0compress.data import Data
from l0compress.training.losses import cross_entropy, mse
from l0compress.training.settings import FinetuneSettings


def train_(model: nn.Module, data: Data, settings: FinetuneSettings, *, warmup: int = 1) -> None:
    """AdamW with a cosine schedule, as ``finetune`` has it, on the labels alone; ``warmup`` steps rise to the rate.

    The data's augmentation is used throughout. Dropout draws from the global generator. The model is left in eval mode.
    """
    batch_size = settings.batch_size_for(len(data.train))
    steps = settings.epochs * (len(data.train) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), settings.rate, weight_decay=settings.weight_decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    generator = torch.Generator().manual_seed(settings.seed)
    model.train()
    for epoch in range(settings.epochs):
        for batch in data.train.batches(batch_size, seed=settings.seed + epoch, drop_last=True):
            shown = batch if data.augment is None else data.augment(batch, generator)
            loss = task_loss(shown.run(model), shown.targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip or float("inf"))
            optimizer.step()
            falling.step()
            rising.step()
    model.eval()


def task_loss(outputs: object, targets: Tensor) -> Tensor:
    """Cross-entropy for classes, mean squared error for values."""
    return mse(outputs, targets) if targets.is_floating_point() else cross_entropy(outputs, targets)
