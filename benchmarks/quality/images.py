"""Networks on images: ResNet-20 on CIFAR-10 as JPEG, and LeNet-300-100 and LeNet-5 on MNIST."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mnist
import resnet20
import torch
import torch.nn.functional as F
from plain_training import train_
from torch import Tensor, nn

from l0compress.data import Batch, Data, Split
from l0compress.pipeline.sources import prepare
from l0compress.training.settings import FinetuneSettings
from quality.cells import RIVALS, TORCH_PRUNING, Grid
from quality.problem import Problem, Score, Task, fewer, hits, misses
from quality.published import LENET_5, LENET_300_100, SPARSE_LENET_5, SPARSE_LENET_300_100, Published

RESNET_EPOCHS, RESNET_RATE = 4, 2.5e-3
LENET_EPOCHS, LENET_RATE = 30, 1e-3
MNIST_FILE = resnet20.FOLDER / "mnist" / "mnist.npz"
SIDE = 28
ERROR = Score("error in %", misses, scale=100)


class LeNet5(nn.Module):
    """Two convolutions of 20 and 50 channels and two linear layers, 500 and 10: 431,080 parameters (Caffe's LeNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.first, self.second = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 1, 28, 28) pixels in [0, 1] to (n, 10) logits."""
        x = F.max_pool2d(F.relu(self.conv1(pixels)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.second(F.relu(self.first(x.flatten(1))))


def shifted(batch: Batch, generator: torch.Generator) -> Batch:
    """Every image moved by up to one pixel in each direction; flat images stay flat."""
    (pixels,) = batch.args
    n = len(pixels)
    padded = F.pad(pixels.view(n, SIDE, SIDE), (1, 1, 1, 1))
    by = torch.randint(0, 3, (2, n, 1), generator=generator) + torch.arange(SIDE)
    moved = padded[torch.arange(n).view(n, 1, 1), by[0].unsqueeze(2), by[1].unsqueeze(1)]
    return Batch((moved.view(pixels.shape),), {}, batch.targets)


def mnist_data(*, flat: bool) -> Data:
    data = replace(mnist.load_mnist(), augment=shifted)
    if flat:
        return data
    parts = data.parts().items()
    images = {name: Split((part.inputs[0].view(-1, 1, SIDE, SIDE),), part.targets) for name, part in parts}
    return replace(data, **images)


def _dense_lenet(path: Path, taste: bool, *, network: type[nn.Module], flat: bool) -> None:
    torch.manual_seed(0)
    model, data = network(), mnist_data(flat=flat)
    train_(
        model,
        fewer(data) if taste else data,
        FinetuneSettings(epochs=1 if taste else LENET_EPOCHS, learning_rate=LENET_RATE),
    )
    torch.save(model.state_dict(), path)


def _lenet(path: Path, *, network: type[nn.Module], flat: bool) -> Problem:
    return _problem(network(), torch.load(path, weights_only=True), mnist_data(flat=flat))


def _dense_resnet(path: Path, taste: bool) -> None:
    torch.manual_seed(0)
    model, data = resnet20.pretrained(), resnet20.data()
    settings = FinetuneSettings(epochs=1 if taste else RESNET_EPOCHS, learning_rate=RESNET_RATE)
    train_(model, fewer(data) if taste else data, settings)
    torch.save(model.state_dict(), path)


def _resnet(path: Path) -> Problem:
    problem = _problem(resnet20.model(), torch.load(path, weights_only=True), resnet20.data())
    return replace(problem, module=with_convolutions(problem.module))


class PaddingConvolution(nn.Conv2d):
    """A shortcut of ResNet-20 as a 1x1 convolution that begins as the padding: every second pixel, zeros around.

    >>> x = torch.arange(32.0).view(1, 2, 4, 4)
    >>> expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
    >>> torch.equal(PaddingConvolution(2, 4)(x), expected)
    True
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(width_in, width, 1, stride=2, bias=False)
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            self.weight[(width - width_in) // 2 :, :, 0, 0].fill_diagonal_(1.0)


class ConvolutionBlock(nn.Module):
    """A residual block of ResNet-20 with a convolution for the padded shortcut, and the same layers otherwise."""

    def __init__(self, block: resnet20.PaddedBlock) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut = PaddingConvolution(block.conv1.in_channels, block.conv1.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def with_convolutions(model: nn.Module) -> nn.Module:
    """ResNet-20 in layers that Torch-Pruning can cut: the same function, with 2,560 more weights, which can learn."""
    model = copy.deepcopy(model)
    padded = [
        (name, block)
        for name, block in model.named_modules()
        if isinstance(block, resnet20.PaddedBlock) and block.padding
    ]
    for name, block in padded:
        model.set_submodule(name, ConvolutionBlock(block))
    return model.eval()


def _problem(model: nn.Module, state: dict[str, Tensor], data: Data) -> Problem:
    model.load_state_dict(state)
    prepared = prepare(model.eval(), data)
    return Problem(prepared.graph, prepared.data, module=model)


def _absent(*paths: Path) -> str | None:
    return next((f"{path} does not exist" for path in paths if not path.exists()), None)


RESNET20 = Task(
    title="ResNet-20 on CIFAR-10 (JPEG)",
    grid=Grid("resnet20", "macs", (0.74, 0.5, 0.35), (0, 3, 10), rivals=RIVALS),
    score=Score("accuracy in %", hits, scale=100, higher_is_better=True),
    about=(
        f"The published weights, fine-tuned on these lossy images for {RESNET_EPOCHS} epochs, are the dense model and "
        "the teacher. Images are shifted and mirrored throughout. Torch-Pruning cannot cut the padded shortcuts: it "
        "gets 1x1 convolutions in their place, which begin as the padding, learn like all other weights, and count."
    ),
    missing=partial(_absent, resnet20.WEIGHTS, resnet20.IMAGES),
    make_dense=_dense_resnet,
    load=_resnet,
)
_MNIST = (
    f"The dense model was trained for {LENET_EPOCHS} epochs. Images are shifted by up to one pixel throughout, which "
    "the published rows may not have had. Their budgets are the weights that they have left; where units are removed, "
    "all our parameters, biases too, have to keep to them, and where single weights are, the biases, which stay, come "
    "on top."
)


def _lenet_task(
    name: str, title: str, published: tuple[Sequence[Published], ...], network: type[nn.Module], **more: Any
) -> Task:
    """A LeNet on MNIST with the budgets of the published rows, dense and sparse; ``more`` goes to the grid."""
    units, weights = (tuple(row.params for row in rows) for rows in published)
    options: dict[str, Any] = {"network": network, "flat": network is mnist.LeNet}
    return Task(
        title=f"{title} on MNIST",
        grid=Grid(name, "params", units, (48,), sparse=weights, rivals=TORCH_PRUNING, **more),
        score=ERROR,
        about=_MNIST,
        missing=partial(_absent, MNIST_FILE),
        make_dense=partial(_dense_lenet, **options),
        load=partial(_lenet, **options),
    )


LENET300 = _lenet_task(
    "lenet300", "LeNet-300-100", (LENET_300_100, SPARSE_LENET_300_100), mnist.LeNet, quick=((9_560, 48),)
)
LENET5 = _lenet_task("lenet5", "LeNet-5", (LENET_5, SPARSE_LENET_5), LeNet5)
