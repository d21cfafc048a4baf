"""Three clouds of points and a network that knows them: what training is tested on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0compress.data import Split
from l0compress.training.settings import FinetuneSettings, GateSettings

QUICK = FinetuneSettings(epochs=6, batch_size=32, gates=GateSettings(learning_rate=0.1, multiplier_rate=0.2))


def blobs(num_samples: int = 256, *, labels: bool = True, seed: int = 0) -> Split:
    """Three clouds in 8 dimensions, of which the last 4 are noise."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (num_samples,), generator=generator)
    centres = torch.zeros(3, 8)
    centres[:, :3] = 3 * torch.eye(3)
    inputs = centres[targets] + torch.randn(num_samples, 8, generator=generator)
    return Split((inputs,), targets if labels else None)


def trained_mlp(split: Split, out: int = 3) -> nn.Module:
    """16 hidden units, fitted by full-batch Adam."""
    torch.manual_seed(0)
    return fitted_(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, out)), split)


def fitted_(model: nn.Module, split: Split) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    targets = split.targets
    for _ in range(100):
        predicted = model(split.inputs[0])
        loss = (
            F.mse_loss(predicted[:, 0], targets) if targets.is_floating_point() else F.cross_entropy(predicted, targets)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor
