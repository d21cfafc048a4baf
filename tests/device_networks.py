"""Six networks that between them hold what crosses devices: statistics, tables, tokens, positions, states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import InvertedResidual, randomise
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


class LastStep(nn.Module):
    """A recurrent layer and a head on its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(6, 10, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


def _mlp() -> Built:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3)), _noise(8), {}


def _convolutions() -> Built:
    body = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6))
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)), _noise(3, 8, 8), {}


def _grouped() -> Built:
    body = (InvertedResidual(8, 8, stride=1, expansion=2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU())
    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    return nn.Sequential(stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), _noise(3, 8, 8), {}


def _bert() -> Built:
    import transformers

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24
    )
    tokens = _tokens()
    model = transformers.BertForSequenceClassification(config)
    return model, (), {"input_ids": tokens, "attention_mask": tokens.ge(5).long()}


def _llama() -> Built:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config), (), {"input_ids": _tokens()}


def _lstm() -> Built:
    return LastStep(), _noise(7, 6), {}


def _noise(*shape: int) -> tuple[Tensor]:
    return (torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)),)


def _tokens() -> Tensor:
    return torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(1))


NETWORKS: dict[str, Callable[[], Built]] = {
    "MLP": _mlp,
    "convolutions with BatchNorm": _convolutions,
    "grouped and depthwise convolutions": _grouped,
    "BERT": _bert,
    "Llama with GQA and rotary tables": _llama,
    "LSTM": _lstm,
}


def build(name: str) -> Built:
    """A network with randomised parameters, in eval mode, and example inputs."""
    model, args, kwargs = NETWORKS[name]()
    return randomise(model), args, kwargs
