"""Modules that are captured for what is behind them, and weights that cannot be: refused with the true reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from l0compress.errors import CaptureError
from l0compress.graph import capture

X = (torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # pyright: ignore[reportReturnType]
    "averaged": torch.optim.swa_utils.AveragedModel,
    "several": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),  # pyright: ignore
    "the module of an exported program": lambda model: torch.export.export(
        model.eval(), X, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module(),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_behind_a_wrapper_is_captured_under_its_own_names(name: str) -> None:
    model = layers()
    graph = capture(WRAPPERS[name](model), X)
    assert sorted(graph.state()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert torch.allclose(graph.module()(X[0]), model(X[0]))


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, X)], ids=["script", "trace"])
def test_a_script_module_is_captured(make: Callable[[nn.Module], nn.Module]) -> None:
    model = layers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = make(model)
    graph = capture(script, X)
    assert sorted(graph.state()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert torch.allclose(graph.module()(X[0]), model(X[0]))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.factor).real


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(layers(), {nn.Linear})


def sparse() -> nn.Module:
    model = layers()
    model[2].weight = nn.Parameter(model.state_dict()["2.weight"].to_sparse())
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "complex": (
        Complex,
        "weight 'factor' of Complex is complex (torch.complex64), and gates and budgets are of real weights. Nothing "
        "was changed. Keep its real and its imaginary part as two parameters, and build the complex tensor in the "
        "forward.",
    ),
    "quantized": (
        quantized,
        "layer '0' of Sequential is quantized (torch.ao.nn.quantized.dynamic.Linear): its weights are packed "
        "integers, which can neither be cut nor trained. Nothing was changed. Compress the float model, and quantize "
        "the result: l0compress export --quantize.",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)),
        "weight '0.weight' of Sequential has no shape yet, because its lazy layer has never run. Nothing was changed. "
        "Run the model once on an input.",
    ),
    "meta": (
        lambda: layers().to("meta"),
        "weight '0.weight' of Sequential is on the meta device and holds no values. Nothing was changed. Load its "
        "weights first, for example with load_state_dict(state, assign=True).",
    ),
    "sparse": (
        sparse,
        "weight '2.weight' of Sequential is sparse (torch.sparse_coo), and only dense weights can be cut. Nothing was "
        "changed. Make it dense with to_dense(): the zeros stay zeros, and export to a sparse bundle leaves them out.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_cannot_be_cut_are_refused_with_the_true_reason(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(CaptureError) as caught:
        capture(make(), X)
    assert str(caught.value) == message


def test_a_lazy_layer_that_ran_is_a_layer_like_others() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    model(X[0])
    assert torch.allclose(capture(model, X).module()(X[0]), model(X[0]))


def test_shapes_alone_can_be_captured_on_the_meta_device() -> None:
    graph = capture(layers().to("meta"), (X[0].to("meta"),))
    assert graph.module()(X[0].to("meta")).shape == (2, 2)
