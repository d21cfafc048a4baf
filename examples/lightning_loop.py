"""Compress a network that Lightning trains: the numbered lines are all that is new.

pip install 'l0compress[lightning]'
python examples/lightning_loop.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import l0compress as l0
from l0compress.integrations.lightning import L0Callback


class Digits(lightning.LightningModule):
    """A LightningModule as you may have it, around any network."""

    def __init__(self, net: nn.Module, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.net, self.learning_rate = net, learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=self.learning_rate)


class GatedDigits(Digits):
    """The same, with a rate of their own for the gates."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.param_groups(lr=self.learning_rate))  # 1


def main(folder: Path, *, epochs: int = 20) -> l0.CapturedGraph:
    """Train dense, train with gates, and export what is left."""
    lightning.seed_everything(0, verbose=False)
    data = l0.load_data("digits")
    train, val = (TensorDataset(part.inputs[0], part.targets) for part in (data.train, data.val))
    loaders = DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=512)
    quiet = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    trainer = lightning.Trainer(max_epochs=epochs, **quiet)
    trainer.fit(Digits(net), *loaders)
    print(f"dense: accuracy {float(trainer.callback_metrics['accuracy']):.3f}")

    gated = l0.gate(l0.capture(net, (data.train.inputs[0][:2],)))  # 2
    callback = L0Callback(gated, "macs=0.3")  # 3
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[callback], **quiet)
    trainer.fit(GatedDigits(gated), *loaders)
    print(f"gated: accuracy {float(trainer.callback_metrics['accuracy']):.3f}")
    outcome = callback.finish()  # 4

    exported = l0.export_onnx(outcome.small, folder / "small.onnx", reference=outcome.masked)  # 5
    print(f"MACs: {l0.cost(outcome.dense).macs:,} -> {l0.cost(outcome.small).macs:,}")
    print(f"{exported.path}: equal within {exported.equality.max_relative:.1e}")
    return outcome.small


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()))
