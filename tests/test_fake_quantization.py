"""Training for the int8 file: the network that is trained computes what the file will compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clouds import QUICK, blobs
from models import randomise
from torch import Tensor, fx, nn

from l0compress.data import Data
from l0compress.errors import InputError
from l0compress.export.onnx import export_onnx
from l0compress.export.quantize import quantize_onnx
from l0compress.export.session import OnnxSession
from l0compress.graph import CapturedGraph, capture
from l0compress.training.evaluation import evaluate
from l0compress.training.fake_quantization import fake_quantized, round_activation, round_rows, round_weight
from l0compress.training.finetune import FinetuneResult, finetune
from l0compress.training.losses import objective_of
from l0compress.training.settings import FinetuneSettings, GateSettings
from l0compress.verification.calls import Call


class TestRounding:
    def test_every_channel_has_a_scale_of_its_own(self) -> None:
        weight = torch.randn(6, 4, 3) * torch.logspace(-4, 4, 6)[:, None, None]
        steps = weight.abs().amax((1, 2), keepdim=True) / 127
        assert torch.allclose(round_weight(weight, 0), (weight / steps).round() * steps, rtol=1e-6, atol=0)
        turned = round_weight(weight.transpose(0, 1), -3 + 1)
        assert torch.equal(turned.transpose(0, 1), round_weight(weight, 0))

    def test_activations_have_255_steps_and_a_zero(self) -> None:
        x = torch.linspace(-1.0, 3.0, 5001)
        rounded = round_activation(x)
        assert len(rounded.unique()) == 256 and bool((rounded == 0).any())
        assert float((rounded - x).abs().max()) <= 4 / 255 * 0.5001

    def test_a_range_without_zero_is_widened_to_it(self) -> None:
        assert round_activation(torch.tensor([51.2, 102.4, 255.0])).tolist() == [51.0, 102.0, 255.0]

    def test_what_is_zero_stays_zero(self) -> None:
        assert round_weight(torch.zeros(3, 2), 0).eq(0).all() and round_activation(torch.zeros(3)).eq(0).all()
        sparse = torch.randn(8, 8) * (torch.rand(8, 8) > 0.5)
        assert torch.equal(
            round_weight(sparse, 0) == 0, (sparse.abs() * 254 < sparse.abs().amax(1, True)) | (sparse == 0)
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_gradients_pass_and_types_stay(self, dtype: torch.dtype) -> None:
        weight = torch.randn(5, 4, dtype=dtype, requires_grad=True)
        for rounded in (
            round_weight(weight, 0),
            round_weight(weight, None),
            round_activation(weight),
            round_rows(weight, weight, True),
        ):
            assert rounded.dtype == dtype
            (gradient,) = torch.autograd.grad(rounded.sum(), weight)
            assert torch.equal(gradient, torch.ones_like(weight))


class Tied(nn.Module):
    """Words, and scores of all words by the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.scores = nn.Embedding(40, 32), nn.Linear(32, 32), nn.Linear(32, 40)
        self.scores.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.scores(torch.relu(self.hidden(torch.tanh(self.words(ids)).mean(1))))


class Products(nn.Module):
    """A weight with its outputs as columns, and one that is read transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(12, 9)), nn.Parameter(torch.randn(5, 9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.second.t()


class Residual(nn.Module):
    """Two convolutions, of which the second is added to what the first returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.scores = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        return self.scores(nn.functional.max_pool2d(x, 2).mean((2, 3)))


class Halves(nn.Module):
    """Half of the channels goes through a convolution of its own: it keeps the scale of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scores = nn.Conv2d(2, 8, 3), nn.Conv2d(4, 6, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        return self.scores(torch.cat([self.second(left).amax((2, 3)), right.amax((2, 3))], 1))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(6, 4, 2), nn.BatchNorm2d(4), nn.ReLU6(),
        nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3),
    )  # fmt: skip


DYNAMIC = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5)),
        torch.randn(16, 12),
    ),
    "tied": (Tied, torch.randint(0, 40, (16, 6))),
    "products": (Products, torch.randn(16, 12)),
}
STATIC = {"residual": Residual, "lenet": lenet, "halves": Halves}


def captured(model: nn.Module, x: Tensor) -> CapturedGraph:
    return capture(randomise(model).eval(), (x,))


def file_of(graph: CapturedGraph, folder: Path, calibration: Tensor | None = None) -> OnnxSession:
    exact = export_onnx(graph, folder / "float.onnx").path
    calls = None if calibration is None else [Call((calibration,))]
    return OnnxSession(quantize_onnx(exact, folder / "int8.onnx", calibration=calls, sample=Call(graph.example_args)))


def apart(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("name", DYNAMIC)
def test_without_convolutions_it_computes_what_the_file_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, x = DYNAMIC[name]
    graph = captured(make(), x)
    got, file = fake_quantized(graph)(x), file_of(graph, tmp_path)(x)["output_0"]
    assert apart(got, file) < 2e-6 < 2e-3 < apart(file, graph.module()(x))


class Calibrated(fx.Interpreter):
    """Runs a network that rounds with the ranges that a float one has: the file's, where both see the same."""

    def __init__(self, network: fx.GraphModule, exact: fx.GraphModule, x: Tensor) -> None:
        super().__init__(network)
        self.ranges: dict[str, Tensor] = {}
        watching = fx.Interpreter(exact)
        run_node = watching.run_node

        def run(node: fx.Node) -> Any:
            self.ranges[node.name] = value = run_node(node)
            return value

        watching.run_node = run
        watching.run(x, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        if n.target is not round_activation:
            return super().run_node(n)
        (rounded,) = n.all_input_nodes
        return round_activation(self.env[rounded], self.ranges[rounded.name])


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", STATIC)
def test_with_convolutions_it_rounds_what_the_file_rounds(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 2, 8, 8)
    graph = captured(STATIC[name](), x)
    network, file = fake_quantized(graph), file_of(graph, tmp_path, x)(x)["output_0"]
    got = Calibrated(network, graph.module(), x).run(x, enable_io_processing=False)[0]
    assert apart(got, file) < 2e-6 < 2e-3 < apart(file, graph.module()(x))
    # With ranges of its own other values fall to other sides, and no more of them.
    assert apart(network(x), graph.module()(x)) < 1.5 * apart(file, graph.module()(x))


def test_parameters_keep_their_names_and_are_copies() -> None:
    graph = captured(Residual(), torch.randn(2, 2, 8, 8))
    network = fake_quantized(graph)
    assert network.state_dict().keys() == graph.module().state_dict().keys()
    network.train()
    network(torch.randn(4, 2, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not torch.equal(network.get_buffer("norm.running_mean"), graph.state()["norm.running_mean"])


AWARE = replace(QUICK, epochs=4, quantization_aware=True)


@pytest.fixture(scope="module")
def result(graph: CapturedGraph, data: Data) -> FinetuneResult:
    return finetune(graph, data, {"params": 0.4}, settings=AWARE)


def test_the_best_epoch_is_chosen_by_what_the_file_will_compute(result: FinetuneResult, data: Data) -> None:
    objective = objective_of(result.reading, "auto")
    rounded = evaluate(fake_quantized(result.small), data.val, objective)
    assert rounded == result.best_evaluation
    assert rounded.loss != evaluate(result.small.module(), data.val, objective).loss


def test_it_is_trained_in_the_final_phase_alone(graph: CapturedGraph, data: Data, result: FinetuneResult) -> None:
    plain = finetune(graph, data, {"params": 0.4}, settings=replace(AWARE, quantization_aware=False))
    gated = AWARE.gated_steps(1)
    assert [row.loss for row in plain.history[:gated]] == [row.loss for row in result.history[:gated]]
    assert plain.history[gated].loss != result.history[gated].loss
    assert torch.equal(plain.plan.keep, result.plan.keep)


def test_single_weights_that_went_stay_zero(graph: CapturedGraph, data: Data) -> None:
    found = finetune(graph, data, {"params": 0.4}, settings=replace(AWARE, granularity="weights"))
    for name, mask in found.plan.small_masks().items():
        assert not bool(mask.all()) and found.last.state()[name][~mask].eq(0).all()


def test_it_goes_together_with_bfloat16(graph: CapturedGraph, data: Data) -> None:
    found = finetune(graph, data, {"params": 0.4}, settings=replace(AWARE, bf16=True))
    assert found.best_evaluation.metric > 0.8


@pytest.mark.parametrize(
    ("changes", "enough"), [({"epochs": 0}, 1), ({"epochs": 2, "gates": GateSettings(share=1.0)}, 3)]
)
def test_without_a_final_phase_it_is_refused(changes: dict[str, Any], enough: int) -> None:
    with pytest.raises(InputError) as error:
        FinetuneSettings(quantization_aware=True, **changes)
    assert str(error.value) == (
        f"quantization_aware with epochs={changes['epochs']}: weights adapt to rounding in the phase after the "
        f"decision, but there is none. Nothing was changed. Pass --epochs {enough} or more, or omit "
        "--quantization-aware."
    )
    assert FinetuneSettings(quantization_aware=True, epochs=1).quantization_aware


def test_a_model_that_stays_in_float_is_refused() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1))[0][-1]

    sequences = torch.randn(32, 5, 4)
    split = blobs(32)
    part = replace(split, inputs=(sequences,))
    with pytest.raises(InputError) as error:
        finetune(capture(Reading(), (sequences,)), Data(part, part), {"params": 0.5}, settings=AWARE)
    assert str(error.value) == (
        "quantization_aware: the int8 form of this model keeps all of its weights in float, because it has no linear "
        "layer, convolution, product with a weight or embedding. Nothing was changed. Leave --quantization-aware out."
    )
