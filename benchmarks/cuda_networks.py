"""Networks that between them hold what crosses devices, for :mod:`prove_cuda`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLASSES, SIDE = 10, 12


class Positions(nn.Module):
    """A transformer layer over tokens with positions that are made in forward, so that its graph names a device."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(16, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(self.layer(self.tokens(x) + self.places(places)).mean(1))


class LastStep(nn.Module):
    """A recurrent layer and a head on its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(8, 24, batch_first=True), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Convolutions(nn.Module):
    """Plain, depthwise and grouped convolutions with BatchNorm."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_unit(1, width), *_unit(width, width, groups=width), *_unit(width, 2 * width, stride=2),
            *_unit(2 * width, 2 * width, groups=4),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def _unit(width_in: int, width: int, **options: Any) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width_in, width, 3, padding=1, bias=False, **options), nn.BatchNorm2d(width), nn.ReLU()


def _transformers() -> Any:
    """transformers, which imports torchvision where it is installed, with operators or without."""
    importlib.import_module("torchvision_without_ops")
    return importlib.import_module("transformers")


def _bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    transformers = _transformers()
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=2, **sizes))
    return model, (torch.randint(50, (4, 12)),)


def _llama() -> tuple[nn.Module, tuple[Tensor, ...]]:
    transformers = _transformers()
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 8, "intermediate_size": 64}
    config = transformers.LlamaConfig(num_hidden_layers=2, num_key_value_heads=4, use_cache=False, **sizes)
    return transformers.LlamaForCausalLM(config), (torch.randint(50, (4, 12)),)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "MLP": lambda: (nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, CLASSES)), (torch.randn(4, 16),)),
    "convolutions": lambda: (Convolutions(), (torch.randn(4, 1, SIDE, SIDE),)),
    "transformer": lambda: (Positions(), (torch.randint(50, (4, 12)),)),
    "LSTM": lambda: (LastStep(), (torch.randn(4, 7, 8),)),
    "BERT": _bert,
    "Llama": _llama,
}
