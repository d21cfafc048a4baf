"""What a model does in training mode alone: kept where the graph can hold it, named where it cannot."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0compress.errors import LostInCaptureWarning
from l0compress.graph import capture
from l0compress.graph.capture.training_mode import TrainingOnly


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(x.shape[0], 1).bernoulli_(0.5) if self.training else x


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.drop_path, self.drop = DropPath(), nn.Dropout(0.25)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.drop(self.first(x))))

    def between(self, x: Tensor) -> Tensor:
        return x


class StochasticDepth(Body):
    def between(self, x: Tensor) -> Tensor:
        return x + self.drop_path(x)


class ByHand(Body):
    def between(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training)
        return F.dropout(x, 0.3) if self.training else x


class Noise(Body):
    def between(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class LayerDrop(Body):
    def between(self, x: Tensor) -> Tensor:
        return x if self.training and random.uniform(0, 1) < 0.5 else torch.tanh(x)


class OfNumPy(Body):
    def between(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand()) if self.training else x


class Average(Body):
    mean: Tensor

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return x - self.mean


class Weights(Body):
    """Attention that returns its weights has dropout of its own, in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1)

    def between(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=True)[0]


def random_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(legacy=False)["state"]["pos"], torch.get_rng_state().tolist()


def line_of(kind: type[Body], offset: int = 1) -> str:
    return f"test_training_mode.py:{kind.between.__code__.co_firstlineno + offset}"


LOST: dict[type[Body], TrainingOnly] = {
    StochasticDepth: TrainingOnly(
        "bernoulli", "drop_path", f"test_training_mode.py:{DropPath.forward.__code__.co_firstlineno + 1}"
    ),
    ByHand: TrainingOnly("bernoulli", "", line_of(ByHand, 2)),
    Noise: TrainingOnly("randn_like", "", line_of(Noise)),
    LayerDrop: TrainingOnly("random", "", line_of(LayerDrop)),
    OfNumPy: TrainingOnly("numpy.random", "", ""),
    Average: TrainingOnly("buffer mean", "", line_of(Average, 2)),
    Weights: TrainingOnly("bernoulli", "attention", line_of(Weights)),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_the_graph_cannot_do_is_named_with_module_and_line(kind: type[Body]) -> None:
    model, expected = kind(), LOST[kind]
    before = random_states()
    with pytest.warns(LostInCaptureWarning) as caught:
        graph = capture(model, (torch.zeros(2, 4),))
    assert graph.training_only == (expected,)
    assert str(caught[0].message) == (
        f"the graph of {kind.__name__} omits what the model does only in training mode: {expected.sentence}. "
        "Evaluation mode is complete. CapturedGraph.training_only lists everything."
    )
    assert caught[0].filename == __file__
    assert random_states() == before
    assert model.training
    assert not model.state_dict()["mean"].any()


def test_the_same_loss_in_several_layers_is_named_layer_by_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), DropPath(), nn.Linear(4, 4), DropPath())
    with pytest.warns(LostInCaptureWarning, match=r"\(bernoulli\) in 1 \(.*; random numbers \(bernoulli\) in 3 \("):
        graph = capture(model, (torch.zeros(2, 4),))
    assert [part.module for part in graph.training_only] == ["1", "3"]


def test_what_the_graph_does_in_training_mode_is_not_named() -> None:
    """Dropout of every kind, between recurrent layers, in attention, in a loop over one module; batch norm."""
    shared = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    model = nn.Sequential(nn.Linear(8, 8), nn.AlphaDropout(0.1), nn.BatchNorm1d(8), shared, shared, nn.Dropout(0.0))
    assert capture(model, (torch.zeros(2, 8),)).training_only == ()
    layers = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.25), nn.LSTM(8, 8, 3, dropout=0.5))
    assert capture(layers, (torch.zeros(2, 3, 8),)).training_only == ()


def test_a_model_that_cannot_run_in_training_mode_is_captured_all_the_same() -> None:
    class EvaluationOnly(Body):
        def between(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("no labels")
            return x

    assert capture(EvaluationOnly(), (torch.zeros(2, 4),)).training_only == ()
