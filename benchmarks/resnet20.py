"""A pretrained ResNet-20 on CIFAR-10 (JPEG), brought to half its multiply-accumulates through the command line.

    python benchmarks/resnet20.py [--epochs 3] [--target macs=0.5] [--seed 0]

The same pretrained weights are also fine-tuned dense, for as many epochs, on the same data with the same optimizer and
seed: half the compute has to be compared with what the data alone would have given. Data and weights are read from
``$L0COMPRESS_DATA``, by default ``../shared/data``: ``cifar10_jpeg/cifar10_jpeg.npz`` and
``resnet_cifar10/resnet20-12fca82f.th``.

:func:`model` and :func:`data` are what ``l0compress finetune --factory resnet20:model --data resnet20:data`` calls.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from command_line import l0, print_budget
from plain_training import train_
from torch import Tensor, nn

from l0compress.data import Batch, Data, Split
from l0compress.graph import capture
from l0compress.training.settings import FinetuneSettings

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("L0COMPRESS_DATA", REPOSITORY.parent / "shared" / "data"))
WEIGHTS = FOLDER / "resnet_cifar10" / "resnet20-12fca82f.th"
IMAGES = FOLDER / "cifar10_jpeg" / "cifar10_jpeg.npz"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_VALIDATION = 5_000


class PaddedBlock(nn.Module):
    """A residual block of ResNet-20: where the width doubles, the shortcut is strided and padded with zero channels."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.padding = (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR with parameter-free shortcuts (He et al. 2016, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(PaddedBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(PaddedBlock(16, 32, 2), PaddedBlock(32, 32, 1), PaddedBlock(32, 32, 1))
        self.layer3 = nn.Sequential(PaddedBlock(32, 64, 2), PaddedBlock(64, 64, 1), PaddedBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.size(3)).view(x.size(0), -1))


def model() -> nn.Module:
    """The architecture that the pretrained weights fill."""
    return ResNet20()


def pretrained() -> nn.Module:
    """The network with the published weights."""
    network = model()
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return network


def data() -> Data:
    """CIFAR-10 decoded and normalised; 5,000 training images are the validation part, the test part stays apart."""
    with np.load(IMAGES) as arrays:
        train = _decoded(arrays["train_bytes"], arrays["train_len"])
        test = _decoded(arrays["test_bytes"], arrays["test_len"])
        y_train, y_test = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("y_train", "y_test"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    inner, val = order[NUM_VALIDATION:], order[:NUM_VALIDATION]
    return Data(
        train=Split((train[inner],), y_train[inner]),
        val=Split((train[val],), y_train[val]),
        test=Split((test,), y_test),
        augment=shifted_and_flipped,
    )


def _decoded(content: np.ndarray, lengths: np.ndarray) -> Tensor:
    """JPEG bytes, one image after the other, as normalised float32 (n, 3, 32, 32)."""
    from PIL import Image

    ends = np.cumsum(lengths)
    images = np.empty((len(lengths), 32, 32, 3), dtype=np.uint8)
    for position, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        images[position] = np.asarray(Image.open(io.BytesIO(content[end - length : end].tobytes())).convert("RGB"))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
    return pixels.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1)).contiguous()


def shifted_and_flipped(batch: Batch, generator: torch.Generator) -> Batch:
    """The usual augmentation of CIFAR: shifts of up to 4 pixels, and mirror images for half of the batch."""
    (images,) = batch.args
    dx, dy = (int(offset) for offset in torch.randint(0, 9, (2,), generator=generator))
    padded = F.pad(images, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
    mirror = torch.rand(len(images), generator=generator) < 0.5
    return Batch((torch.where(mirror.view(-1, 1, 1, 1), padded.flip(3), padded),), {}, batch.targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-dense", action="store_true", help="do not fine-tune the dense model for comparison")
    arguments = parser.parse_args()
    for path in (WEIGHTS, IMAGES):
        if not path.exists():
            sys.exit(f"{path} does not exist: set L0COMPRESS_DATA to the folder that holds it")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        finetune = ["finetune", WEIGHTS, "--factory", "resnet20:model", "--data", "resnet20:data"]
        l0(*finetune, "--target", arguments.target, "--epochs", arguments.epochs, "--seed", arguments.seed, "-o", run)
        l0("export", run, "--format", "onnx", "-o", Path(folder) / "small.onnx")
        l0("verify", Path(folder) / "small.onnx", "--against", run)
        print_budget(run)
        l0("bench", Path(folder) / "small.onnx", "--against", run, "--batch", "1,8,64")
    if not arguments.skip_dense:
        print(
            f"dense, fine-tuned alike for {arguments.epochs} epochs: {dense_accuracy(arguments):.2%} on the test part"
        )


def dense_accuracy(arguments: argparse.Namespace) -> float:
    """Test accuracy of the pretrained model after plain fine-tuning: same data, epochs, batch size, optimizer, seed."""
    parts = data()
    settings = FinetuneSettings(epochs=arguments.epochs, seed=arguments.seed)
    batch_size = settings.batch_size_for(len(parts.train))
    steps = settings.epochs * (len(parts.train) // batch_size)
    torch.manual_seed(arguments.seed)
    network = pretrained()
    rate = settings.settled(capture(network, (torch.zeros(2, 3, 32, 32),)), steps).rate
    train_(network, parts, replace(settings, learning_rate=rate))
    with torch.no_grad():
        right = [network(*b.args).argmax(1).eq(b.targets).sum().item() for b in parts.test.batches(500)]
    return sum(right) / len(parts.test)


if __name__ == "__main__":
    main()
