"""Networks that stand for what users bring, small enough to read, with parameters that make every channel matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision_without_ops  # noqa: F401  transformers imports torchvision where it is installed
from resnet20 import ResNet20
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic, so that no channel is silent by initialisation (zero heads, tiny scales)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1.2 / tensor[0].numel() ** 0.5)
            elif "var" in name or "weight" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model.eval()


def lenet_300_100() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


class LeNet5(nn.Module):
    """LeNet-5 as in Caffe: 20-50-800-500."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(torch.relu(self.fc1(x.view(x.size(0), -1))))


def _unit(width_in: int, width: int, kernel: int, stride: int = 1, conv_groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=conv_groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width_in * expansion
        self.expand = _unit(width_in, hidden, 1)
        self.depthwise = _unit(hidden, hidden, 3, stride, hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))
        self.residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    """Depthwise separable convolutions with inverted residuals, as in MobileNetV2."""
    return nn.Sequential(
        _unit(3, 8, 3, 2),
        InvertedResidual(8, 12, 1, 3),
        InvertedResidual(12, 12, 1, 3),
        InvertedResidual(12, 16, 2, 3),
        _unit(16, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, 10),
    )


class DenseNet(nn.Module):
    """Two dense blocks: every layer reads the concatenation of all before it."""

    def __init__(self, growth: int = 6, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 1, 1, bias=False)
        width = 12
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for _ in range(2):
            block = nn.ModuleList()
            for _ in range(layers):
                block.append(
                    nn.Sequential(nn.BatchNorm2d(width), nn.GELU(), nn.Conv2d(width, growth, 3, 1, 1, bias=False))
                )
                width += growth
            self.blocks.append(block)
            self.transitions.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1)))
            width //= 2
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            features = [x]
            for layer in block:
                features.append(layer(torch.cat(features, 1)))
            x = F.avg_pool2d(transition(torch.cat(features, 1)), 2)
        return self.head(x.mean((2, 3)))


class ShuffleUnit(nn.Module):
    """Chunk, transform one half, concatenate, shuffle the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(_unit(half, half, 1), _unit(half, half, 3, 1, half), _unit(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def shufflenet() -> nn.Module:
    return nn.Sequential(
        _unit(3, 16, 3), ShuffleUnit(16), ShuffleUnit(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def resnext() -> nn.Module:
    """A convolution in four groups of five channels each."""
    return nn.Sequential(
        _unit(3, 20, 3), _unit(20, 20, 3, 1, 4), _unit(20, 12, 1), nn.Flatten(), nn.Linear(12 * 64, 10)
    )


class SqueezeExcite(nn.Module):
    """A bottleneck that rescales the channels it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        scale = torch.sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.out(x * scale).mean((2, 3)))


def _tokens() -> Tensor:
    return torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(1))


def _image(size: int, channels: int = 3) -> tuple[Tensor]:
    return (torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1)),)


def bert() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers

    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    tokens = _tokens()
    return (
        transformers.BertForSequenceClassification(config),
        (),
        {"input_ids": tokens, "attention_mask": tokens.ge(5).long()},
    )


def gpt2() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config), (), {"input_ids": _tokens()}


def llama() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Eight query heads share four key and value heads."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=64,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config), (), {"input_ids": _tokens()}


def vit() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers

    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return transformers.ViTForImageClassification(config), (), {"pixel_values": _image(32)[0]}


Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

ZOO: dict[str, Callable[[], Built]] = {
    "LeNet-300-100": lambda: (lenet_300_100(), _image(28, 1), {}),
    "LeNet-5-Caffe": lambda: (LeNet5(), _image(28, 1), {}),
    "ResNet-20": lambda: (ResNet20(), _image(32), {}),
    "MobileNetV2-like": lambda: (mobilenet(), _image(16), {}),
    "DenseNet-like": lambda: (DenseNet(), _image(16), {}),
    "ShuffleNet-like": lambda: (shufflenet(), _image(8), {}),
    "ResNeXt-like": lambda: (resnext(), _image(8), {}),
    "squeeze-excite": lambda: (SqueezeExcite(), _image(8), {}),
    "BERT": bert,
    "GPT-2": gpt2,
    "Llama with GQA": llama,
    "ViT": vit,
}


def build(name: str) -> Built:
    """A network of the zoo with randomised parameters, in eval mode, and example inputs."""
    model, args, kwargs = ZOO[name]()
    return randomise(model), args, kwargs
