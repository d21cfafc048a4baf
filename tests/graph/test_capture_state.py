"""Capture and the state that a model keeps from call to call: nothing of it is changed, and nothing depends on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from l0compress.errors import CaptureError
from l0compress.graph import capture


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(torch.relu(self.first(x))))

    def between(self, x: Tensor) -> Tensor:
        return x


class CachedByShape(Body):
    """As heads of detectors keep their anchors: defaults of the class, set anew when the shape is another."""

    shape: Any = None
    anchors = torch.empty(0)

    def between(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.anchors, self.scale = (a * 2 for a in (torch.ones_like(x), torch.ones(x.shape[0], 1)))
            self.shape = x.shape
        return x * self.anchors + self.scale


class CachedFromInit(Body):
    """Defaults of ``__init__``, in a submodule of one's own."""

    class Bias(nn.Module):
        mask: Tensor
        values: Any

        def __init__(self) -> None:
            super().__init__()
            self.size, self.values = 0, None
            self.register_buffer("mask", torch.empty(0), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.size != x.shape[0]:
                self.values = torch.full((x.shape[0], 1), 3.0)
                self.mask = torch.ones_like(x)
                self.size = x.shape[0]
            return x * self.mask + self.values

    def __init__(self) -> None:
        super().__init__()
        self.bias = CachedFromInit.Bias()

    def between(self, x: Tensor) -> Tensor:
        return self.bias(x)


class CachedWhenFirstCalled(Body):
    ones: Any

    def between(self, x: Tensor) -> Tensor:
        if getattr(self, "ones", None) is None or self.ones.shape != x.shape:
            self.ones = torch.ones_like(x)
        self.seen = [*getattr(self, "seen", []), x]
        return x + self.ones


class Registered(Body):
    ones: Any

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ones", None)

    def between(self, x: Tensor) -> Tensor:
        if self.ones is None or len(self.ones) != len(x):
            self.register_buffer("ones", torch.ones_like(x))
        return x + self.ones


class Remembering(Body):
    """Containers that grow, and a number of calls that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []
        self.last: dict[str, Any] = {"inner": {}}
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def between(self, x: Tensor) -> Tensor:
        self.log.append(x)
        self.last["inner"]["x"] = x
        self.calls += 1
        return x


class Scratch(Body):
    """A buffer that is written before it is read."""

    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.zeros(16, 6))

    def between(self, x: Tensor) -> Tensor:
        self.scratch[: x.shape[0]] = x
        return self.scratch[: x.shape[0]] * 2


MODELS = [CachedByShape, CachedFromInit, CachedWhenFirstCalled, Registered, Remembering, Scratch]


def x(batch: int = 2, width: int = 4) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(batch))


def state_of(model: nn.Module) -> list[Any]:
    """Every attribute of every module: which object it is, and what it holds."""
    return [
        (name, key, id(value), repr(value))
        for name, module in model.named_modules()
        for table in (vars(module), module._buffers, module._parameters, module._modules)
        for key, value in table.items()
    ]


@pytest.mark.mostly_slow
@pytest.mark.parametrize("kind", MODELS)
def test_the_graph_does_not_depend_on_what_ran_before_and_the_model_is_untouched(kind: type[Body]) -> None:
    model = kind()
    pristine = state_of(model)
    expected = capture(model, (x(),))
    assert state_of(model) == pristine
    # The same batch as the example's, so that whatever is kept for the last size seems to fit.
    model.eval()(x(2))
    before = state_of(model)
    graphs = [capture(model, (x(),))]
    assert state_of(model) == before
    model.train()(x(7))
    with pytest.raises(CaptureError):
        capture(model, (x(2, 5),))
    graphs.append(capture(model, (x(),)))
    for graph in graphs:
        assert graph.graph_module.code == expected.graph_module.code
        assert {n: t.tolist() for n, t in graph.state().items()} == {n: t.tolist() for n, t in expected.state().items()}
    assert torch.allclose(graphs[-1].module()(x(5)), model.eval()(x(5)))


class Learned(Body):
    """A value that training changes and evaluation reads is no cache, whatever ``__init__`` made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            self.temperature = self.temperature * 0.5
        return x / self.temperature


def test_what_the_output_depends_on_is_captured_as_it_is() -> None:
    model = Learned()
    model.train()(x())
    assert torch.allclose(capture(model, (x(),)).module()(x(5)), model.eval()(x(5)))
    assert model.temperature == 0.5


class Counting(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Averaging(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def between(self, x: Tensor) -> Tensor:
        self.mean = self.mean * 0.9 + x.mean(0) * 0.1
        return x - self.mean


class Plain(Body):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def between(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x * self.steps


class Past(Body):
    def __init__(self) -> None:
        super().__init__()
        self.past: list[Tensor] = []

    def between(self, x: Tensor) -> Tensor:
        self.past.append(x.sum(0, keepdim=True))
        return x + torch.cat(self.past).sum(0)


@pytest.mark.parametrize(("kind", "name"), [(Counting, "calls"), (Averaging, "mean"), (Plain, "steps"), (Past, "past")])
def test_state_that_the_output_depends_on_is_refused(kind: type[Body], name: str) -> None:
    model = kind()
    before = state_of(model)
    with pytest.raises(CaptureError) as caught:
        capture(model, (x(),))
    number = kind.between.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"{kind.__name__}.forward changes '{name}' (test_capture_state.py:{number}) and its result depends on that, "
        "so a second call returns something different. A graph returns the same for the same inputs. Nothing was "
        "changed. Take that state as an input and return the new one, or change it only in training mode."
    )
    assert state_of(model) == before


def test_an_exported_program_that_keeps_state_is_refused() -> None:
    program = torch.export.export(Counting().eval(), (x(),), strict=False)
    number = Body.forward.__code__.co_firstlineno + 1
    with pytest.raises(
        CaptureError,
        match=rf"^The exported program changes 'calls' \(test_capture_state\.py:{number}\) and its result depends on ",
    ):
        capture(program)


class Normalised(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def test_statistics_of_batch_norm_are_no_state_of_that_kind() -> None:
    model = Normalised()
    model.train()(x(9))
    graph = capture(model, (x(),))
    network = graph.module().train()
    network(x(8))
    model.train()(x(8))
    assert torch.allclose(network.state_dict()["1.running_mean"], model.state_dict()["1.running_mean"])


def test_a_program_exported_in_training_mode_keeps_counting_batches() -> None:
    program = torch.export.export(Normalised().train(), (x(3),), strict=False)
    network = capture(program).module()
    before = int(network.state_dict()["1.num_batches_tracked"])
    network(x(3))
    assert int(network.state_dict()["1.num_batches_tracked"]) == before + 1
