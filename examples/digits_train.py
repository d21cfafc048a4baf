"""Train a small convolutional network on handwritten digits in plain PyTorch.

    python examples/digits_train.py FOLDER

writes ``digits.pt2`` (a ``torch.export.save`` archive) and ``digits.pt`` (weights only) to the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l0compress import load_data

EPOCHS = 20
BATCH_SIZE = 64


class DigitsNet(nn.Module):
    """Three convolutions and two linear layers for 8x8 greyscale images, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.hidden = nn.Linear(64 * 2 * 2, 128)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, 1, 8, 8) images to (n, 10) logits."""
        hidden = F.relu(self.hidden(self.features(image).flatten(1)))
        return self.output(self.dropout(hidden))


def model() -> DigitsNet:
    """Return a fresh network: what ``--factory digits_train:model`` calls."""
    return DigitsNet()


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return the digits that l0compress includes, split 60/20/20: ``(n, 1, 8, 8)`` images in [0, 1] and labels."""
    return {name: (split.inputs[0], split.targets) for name, split in load_data("digits").parts().items()}


def train(net: nn.Module, images: Tensor, targets: Tensor) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, epochs=EPOCHS, steps_per_epoch=-(-len(images) // BATCH_SIZE)
    )
    net.train()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = F.cross_entropy(net(images[index]), targets[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def accuracy(net: nn.Module, images: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float((net(images).argmax(1) == targets).float().mean())


def main(folder: Path) -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    parts, net = digits(), model()
    train(net, *parts["train"])
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net, (parts["train"][0][:2].clone(),), dynamic_shapes=(batch,))
    torch.export.save(program, folder / "digits.pt2")
    torch.save(net.state_dict(), folder / "digits.pt")
    print(f"trained on {len(parts['train'][0])} digits: validation accuracy {accuracy(net, *parts['val']):.4f}")
    print(f"wrote {folder / 'digits.pt2'} and {folder / 'digits.pt'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
