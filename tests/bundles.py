"""Networks with exact zeros, and their bundles with every sparse product run sparse, for the tests of bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hostile import members, rewritten
from torch import nn

from l0compress import BundleSettings, CapturedGraph, capture, export_bundle
from l0compress.export.bundle import ExportedBundle
from l0compress.verification import Call

SPARSE = BundleSettings(measure=False, threads=1)


def randomised(model: nn.Module, zeros: float = 0.9) -> nn.Module:
    """The model in eval mode with random parameters and statistics, weights with about this share of exact zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 1) ** 0.5
        keep = torch.rand(parameter.shape, generator=generator) >= (zeros if parameter.dim() > 1 else 0.0)
        parameter.data = values * keep * (3 if parameter.dim() > 1 else 1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(generator=generator)
    return model.eval()


def mlp(zeros: float = 0.9) -> nn.Module:
    """48 inputs, 40 and 36 hidden units, 10 classes."""
    layers = [nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 36), nn.GELU(), nn.Linear(36, 10)]
    return randomised(nn.Sequential(*layers), zeros)


def mlp_graph(zeros: float = 0.9) -> CapturedGraph:
    return capture(mlp(zeros), (torch.randn(2, 48),))


def mlp_bundle(path: Path, **options: Any) -> ExportedBundle:
    """The MLP's bundle with every product sparse."""
    return export_bundle(mlp_graph(), path, settings=BundleSettings(measure=False, threads=1, **options))


def ternary_mlp() -> nn.Module:
    """48 inputs, 256 and 256 hidden units, 10 classes; every row of a weight has one magnitude, and zeros.

    So many of the second weight are zero that it takes less as positions and signs, of the others as codes.
    """
    model = nn.Sequential(nn.Linear(48, 256), nn.ReLU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))
    generator = torch.Generator().manual_seed(1)
    for layer, zeros in ((model[0], 0.5), (model[2], 0.95), (model[4], 0.9)):
        scale = 0.1 + torch.rand(len(layer.weight), 1, generator=generator)
        keep = torch.rand(layer.weight.shape, generator=generator) >= zeros
        sign = torch.randn(layer.weight.shape, generator=generator).sign()
        layer.weight.data, layer.bias.data = sign * keep * scale, torch.randn(len(layer.bias), generator=generator)
    return model.eval()


class Recurrent(nn.Module):
    """A recurrent layer, of which ONNX makes one node, and a head."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.recurrent = kind(16, 24, batch_first=True, **options)
        width = options.get("proj_size", 24) * (1 + options.get("bidirectional", False))
        self.head = nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0])


class LastStates(Recurrent):
    """What is left at the end of a sequence, hidden and cell states of both directions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (hidden, cell) = self.recurrent(x)
        return self.head(torch.cat([hidden[-1], cell[0]], -1))


class Translated(nn.Module):
    """A sequence that is read from where another one ended, hidden and cell states and all."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.decoder = (kind(16, 24, batch_first=True) for _ in range(2))
        self.head = nn.Linear(24, 16)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(y, self.encoder(x)[1])[0])


class SameStates(Recurrent):
    """Hidden and cell state begin as one and the same value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.tanh(x.sum(1)).repeat(1, 2)[:, :24].unsqueeze(0)
        return self.head(self.recurrent(x, (state, state))[0])


class Unrolled(nn.Module):
    """A cell in the user's own loop: one weight, read at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x.new_zeros(x.shape[0], 24)
        for step in range(3):
            hidden = self.cell(x[:, step], hidden)
        return self.head(hidden)


class Attention(nn.Module):
    """Embeddings, a transformer block of PyTorch's parts with separate projections, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32, bias=bias) for bias in (True, False, True, True))
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        h = self.norm(x)
        q, k, v = (part(h).unflatten(-1, (4, 8)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.silu(self.up(self.norm(x))))
        return x @ self.embedding.weight.T


class TwoOutputs(nn.Module):
    """Products that are outputs themselves and go on as well; a second input of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 30), nn.Linear(30, 20)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.first(x)
        out = self.second(torch.relu(hidden))
        return {"hidden": hidden, "out": out, "again": out + shift}


class Transposed(nn.Module):
    """Products whose weights have outputs as columns, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.empty(20, 30)), nn.Parameter(torch.empty(30, 20))
        self.bias = nn.Parameter(torch.empty(30))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.addmm(self.bias, x, self.first)) @ self.second


class Positions(nn.Module):
    """A product without bias, to which a constant of one value a position and output is added."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.positions = nn.Linear(24, 30, bias=False), nn.Parameter(torch.empty(7, 30))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.project(x) + self.positions)


def convolutions() -> nn.Module:
    """Every kind of two-dimensional convolution that a layer may be, with batch norm between them."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=(2, 1), groups=4),
        nn.GELU(),
        nn.Conv2d(16, 24, 1),
        nn.ReLU(),
        nn.Conv2d(24, 12, 3, dilation=2, padding="same"),
        nn.Flatten(),
    )


NETWORKS = {
    "linear": lambda: (mlp(), Call((torch.randn(2, 48),))),
    "ternary": lambda: (ternary_mlp(), Call((torch.randn(2, 48),))),
    "linear on sequences": lambda: (mlp(), Call((torch.randn(2, 7, 48),))),
    "convolutions": lambda: (randomised(convolutions()), Call((torch.randn(2, 3, 10, 9),))),
    "one dimension": lambda: (
        randomised(nn.Sequential(nn.Conv1d(8, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 32, 1, bias=False))),
        Call((torch.randn(2, 8, 21),)),
    ),
    "attention": lambda: (randomised(Attention(), 0.8), Call((torch.randint(0, 50, (2, 6)),))),
    "two outputs": lambda: (randomised(TwoOutputs()), Call((torch.randn(2, 20), torch.randn(2, 1)))),
    "columns": lambda: (randomised(Transposed()), Call((torch.randn(2, 20),))),
    "positions": lambda: (randomised(Positions()), Call((torch.randn(2, 7, 24),))),
    "LSTM": lambda: (randomised(Recurrent(nn.LSTM)), Call((torch.randn(2, 5, 16),))),
    "GRU": lambda: (randomised(Recurrent(nn.GRU)), Call((torch.randn(2, 5, 16),))),
    "RNN": lambda: (randomised(Recurrent(nn.RNN)), Call((torch.randn(2, 5, 16),))),
    "ReLU RNN without biases": lambda: (
        randomised(Recurrent(nn.RNN, nonlinearity="relu", bias=False, bidirectional=True), 0.8),
        Call((torch.randn(2, 5, 16),)),
    ),
    "LSTM both ways": lambda: (
        randomised(Recurrent(nn.LSTM, num_layers=2, bidirectional=True)),
        Call((torch.randn(2, 5, 16),)),
    ),
    "GRU both ways": lambda: (
        randomised(Recurrent(nn.GRU, num_layers=2, bidirectional=True)),
        Call((torch.randn(2, 5, 16),)),
    ),
    "projections": lambda: (randomised(Recurrent(nn.LSTM, proj_size=20)), Call((torch.randn(2, 5, 16),))),
    "last states": lambda: (randomised(LastStates(nn.LSTM, bidirectional=True)), Call((torch.randn(2, 5, 16),))),
    "LSTM decoder": lambda: (
        randomised(Translated(nn.LSTM)),
        Call((torch.randn(2, 5, 16), torch.randn(2, 3, 16))),
    ),
    "GRU decoder": lambda: (
        randomised(Translated(nn.GRU)),
        Call((torch.randn(2, 5, 16), torch.randn(2, 3, 16))),
    ),
    "one state as both": lambda: (randomised(SameStates(nn.LSTM)), Call((torch.randn(2, 5, 16),))),
    "unrolled cell": lambda: (randomised(Unrolled()), Call((torch.randn(2, 3, 16),))),
}


def with_every_layer_on(engine: str, data: bytes) -> bytes:
    """A bundle whose layers all run sparse, on one engine."""
    files = members(data)
    manifest = json.loads(files["manifest.json"])
    for step in manifest["plans"]["split"]:
        step["engine"] = step["engine"] and engine
    return rewritten(files, manifest)
